"""The documentation: its Python runs, its commands exist with their options, and its links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from dis_sam import cli, pipeline
from IS_Net.images import write_image, write_mask

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT) for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("data/*.md"))
)


def blocks(path: Path, *languages: str) -> list[str]:
    """Return the code blocks of a page in these languages."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return [code for language, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if language in languages]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_runs_as_written(page: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    mask = np.zeros((1500, 1000), np.uint8)
    mask[200:1300, 200:800] = 255
    write_image(tmp_path / "photo.jpg", rng.integers(0, 256, (1500, 1000, 3), dtype=np.uint8))
    write_mask(tmp_path / "mask.png", mask)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "starter_weights", lambda: weights)
    monkeypatch.setattr(pipeline, "available_model", lambda: "box")
    codes = blocks(Path(page), "python")
    names: dict = {}
    for code in codes:
        exec(compile(code, page, "exec"), names)
    assert codes and names["alpha"].shape == (1500, 1000) and names["alpha"].dtype == np.float32
    assert (tmp_path / "cutout.png").is_file()


def commands() -> list[tuple[str, str]]:
    """Return all calls of dis-sam in the pages' blocks of shell commands, with their pages."""
    found = []
    for page in PAGES:
        for code in blocks(page, "sh", "bash", ""):
            lines = code.replace("\\\n", " ").splitlines()
            found += [(str(page), line.split("|")[0].strip()) for line in lines if re.match(r"\s*dis-sam ", line)]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_have_the_options_that_the_pages_give(page: str, line: str):
    _, verb, *words = shlex.split(line, comments=True)
    if verb.startswith("-"):
        return
    assert verb in cli.VERBS
    options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    if not options:
        return
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert cli.main([verb, "--help"]) == 0
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", text.getvalue()))
    assert options <= known, sorted(options - known)
