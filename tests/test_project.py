"""What is tracked: no path of one machine, nothing large, and the field's language."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

OLD_DIALECT = (
    r"\banew\b",
    r"\baloud\b",
    r"\blest\b",
    r"\bto be had\b",
    r"\bis told\b",
    r"\bare told\b",
    r"\bgoes on\b",
    r"\bgo on (with|from)\b",
    r"\bto mend\b",
    r"\bmends?\b",
    r"\bat hand\b",
    r"\bthereof\b",
    r"\bself[-_ ]label",
    r"\bput_before\b",
    r"\braise[-_]mask\b",
    r"\bmask_path\b",
    r"\blr_stem\b(?!_)",
    r"\bfacts\b",
    r"\bof which it is sure\b",
    r"colour|neighbour|binaris|normalis|optimis|quantis",
)
"""Words of the code's former dialect, and British spellings; docs/glossary.md has the terms to use instead."""


CONVERTERS = ("IS_Net/checkpoint.py", "tests/is_net/test_checkpoint.py", "tests/is_net/test_engine.py")
"""They hold old names as strings, since checkpoints on disk use them."""


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def prose(path: Path) -> str:
    """Return the text of a file that people read; of a notebook, its cells without their outputs."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def test_no_path_of_one_machine_is_tracked():
    home = re.compile(rb"""(?<![\w.~])(?:/(?:root|home|Users)/|[A-Z]:\\\\?Users\\)[^\s"'<]""")
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" not in content and path != Path(__file__).resolve():
            found += [f"{path.relative_to(ROOT)}: {match.group().decode()}" for match in home.finditer(content)]
    assert not found


def test_nothing_large_is_tracked_but_the_starter_weights():
    large = {path.name: path.stat().st_size for path in tracked_files() if path.stat().st_size > 5_000_000}
    assert large.pop("dis_sam_starter.safetensors", 0) <= 46_000_000
    assert not large


@pytest.mark.parametrize("word", OLD_DIALECT)
def test_the_old_dialect_is_gone(word: str):
    pattern = re.compile(word, re.IGNORECASE)
    kinds = {".py", ".md", ".ipynb", ".toml", ".txt", ""}
    exempt = {Path(__file__).name, "LICENSE", "constraints.txt"}
    found = []
    for path in tracked_files():
        if path.suffix in kinds and path.name not in exempt:
            is_converter = str(path.relative_to(ROOT)) in CONVERTERS
            for number, line in enumerate(prose(path).splitlines(), 1):
                line = re.sub(r'"\w+"', "", line) if is_converter else line
                if pattern.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n" + "\n".join(found)
