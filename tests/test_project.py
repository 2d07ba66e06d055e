"""The project as a whole: its dependencies, which module may import which, and the list of data sets."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from IS_Net import datalist
from IS_Net.hypar import IS_NET_DIR

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it along

ROOT = IS_NET_DIR.parent

# the layers of the design: each may import what stands above it
LEAVES = "hypar datalist images preprocess augment coarse composite losses metrics models checkpoint device distributed"
LEAVES += " onnx_weights widen"
MIDDLE = "data_loader predictor engine scoring report"
FOR_SAM = "images preprocess device"

IMPORT_NAMES = {"cv2": "opencv-python-headless", "PIL": "pillow", "skimage": "scikit-image"}


def modules() -> dict[str, Path]:
    """Return the packages' modules by their dotted names."""
    found = {}
    for package in ("IS_Net", "sam"):
        for path in (ROOT / package).rglob("*.py"):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imported(node: ast.AST) -> Iterator[str]:
    """Yield the dotted names that code imports, wherever in it: ``from a import b`` gives ``a`` and ``a.b``."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: relative import"
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)


def own_imports(name: str) -> set[str]:
    """Return the project's modules that a module imports, without the bare packages."""
    return {other for other in imported(tree(name)) if other in MODULES} - {"IS_Net", "sam"}


def is_entry_point(name: str) -> bool:
    """Say whether a module can be run: it looks at ``__name__`` (or is a package's ``__main__``)."""
    guards = (node.test for node in tree(name).body if isinstance(node, ast.If))
    return name.endswith("__main__") or any("__name__" in ast.unparse(guard) for guard in guards)


ENTRY_POINTS = {name for name in MODULES if is_entry_point(name)}
LIBRARY = sorted(set(MODULES) - ENTRY_POINTS)


def layer(names: str) -> set[str]:
    """Return the modules of a layer, those inside its packages too."""
    tops = {f"IS_Net.{name}" for name in names.split()}
    return {module for module in MODULES if any(module == top or module.startswith(f"{top}.") for top in tops)}


# --- who imports whom ---


def test_every_module_has_a_layer():
    runnable = {"train_valid_inference_main", "evaluate", "self_label", "import_cutouts", "import_weights"}
    assert {*(f"IS_Net.{name}" for name in runnable), "sam.generate_masks"} <= ENTRY_POINTS
    of_is_net = {name for name in LIBRARY if name.startswith("IS_Net.")}
    assert of_is_net == layer(LEAVES) | layer(MIDDLE)


@pytest.mark.parametrize("name", sorted(layer(LEAVES)))
def test_leaves_import_leaves(name: str):
    assert own_imports(name) <= layer(LEAVES)


@pytest.mark.parametrize("name", sorted(layer(MIDDLE)))
def test_the_middle_imports_leaves(name: str):
    # stage 2 reads the manifest that stage 1 writes beside its masks, with stage 1's own reader
    assert own_imports(name) <= layer(LEAVES) | {"sam.prompts"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("sam.")])
def test_stage_1_imports_three_leaves(name: str):
    assert {other for other in own_imports(name) if other.startswith("IS_Net")} <= layer(FOR_SAM)


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_an_entry_point(name: str):
    assert not own_imports(name) & ENTRY_POINTS


def test_imports_run_in_no_circle():
    assert list(TopologicalSorter({name: own_imports(name) - {name} for name in MODULES}).static_order())


@pytest.mark.parametrize("name", LIBRARY)
def test_libraries_neither_print_nor_plot(name: str):
    called = {ast.unparse(node.func) for node in ast.walk(tree(name)) if isinstance(node, ast.Call)}
    assert not called & {"print", "logging.basicConfig", "sys.stdout.write", "sys.stderr.write"}
    assert not {top.partition(".")[0] for top in imported(tree(name))} & {"matplotlib", "IPython"}


# --- dependencies ---


def requirements(lines: Iterator[str] | list[str]) -> dict[str, set[str]]:
    """Return the ranges by package; a line's marker does not count."""
    found: dict[str, set[str]] = {}
    for line in lines:
        if line.strip() and not line.lstrip().startswith(("#", "-")):
            requirement = Requirement(line.partition(" #")[0])
            found.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    return found


def lines_of(name: str) -> list[str]:
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_requirements_name_the_same_ranges_as_the_project(project: dict):
    assert requirements(lines_of("requirements.txt")) == requirements(project["dependencies"])
    assert "-e ." in lines_of("requirements.txt")


def test_constraints_pin_every_dependency_inside_its_range(project: dict):
    pins = requirements(lines_of("constraints.txt"))
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    for line in project["dependencies"] + extras:
        requirement = Requirement(line)
        versions = {pin.removeprefix("==") for pin in pins[canonicalize_name(requirement.name)]}
        assert versions
        assert all(requirement.specifier.contains(version) for version in versions), line


def test_there_is_one_opencv(project: dict):
    everything = {*requirements(project["dependencies"]), *requirements(lines_of("constraints.txt"))}
    everything |= {name for lines in project["optional-dependencies"].values() for name in requirements(lines)}
    assert {name for name in everything if "opencv" in name} == {"opencv-python-headless"}


@pytest.mark.parametrize("name", ["requirements.txt", "constraints.txt"])
def test_dependencies_come_by_name(name: str):
    """No file of one machine, no address of one server."""
    assert not [line for line in lines_of(name) if re.search(r"://|@ |--(extra-)?index-url|--find-links", line)]


def test_what_is_imported_is_declared(project: dict):
    declared = requirements(project["dependencies"]).keys()
    sources = [*MODULES.values(), *(ROOT / "data").glob("*.py")]
    used = {top.partition(".")[0] for path in sources for top in imported(ast.parse(path.read_text("utf-8")))}
    own = {"IS_Net", "sam", *(path.stem for path in sources)}
    missing = {
        top
        for top in used - own - set(sys.stdlib_module_names)
        if canonicalize_name(IMPORT_NAMES.get(top, top)) not in declared
    }
    assert not missing


def test_every_package_is_installed():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(config["tool"]["setuptools"]["packages"]) == packages


# --- what is tracked ---


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


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


# --- the list of data sets ---

KEYS = {"name", "im_dir", "gt_dir", "mid_dir", "im_ext", "gt_ext", "mid_ext", "cache_dir"}


def test_data_sets_have_the_published_keys():
    named = datalist.named()
    wanted = {f"dataset_{split}" for split in ("tr", "vd", "te1", "te2", "te3", "te4", "tr_enriched")}
    assert named.keys() == wanted | {f"sample_{split}" for split in ("tr", "vd", "te1")}
    for entry in named.values():
        assert entry.keys() == KEYS
        assert all(isinstance(value, str) for value in entry.values())
        folder = Path(entry["im_dir"]).parent
        assert [Path(entry[key]) for key in ("im_dir", "gt_dir", "mid_dir")] == [
            folder / sub for sub in ("im", "gt", "mask")
        ]
        assert (IS_NET_DIR / folder).resolve().is_relative_to(ROOT / "data")
    for key in ("name", "im_dir", "cache_dir"):  # no two of them in one place
        assert len({entry[key] for entry in named.values()}) == len(named)


def test_data_set_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "photos" / "im").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    entry = datalist.from_folder("photos")
    assert entry.keys() == KEYS
    assert entry["name"] == "photos"
    assert entry["im_dir"] == str(tmp_path / "photos" / "im")
    assert (entry["gt_dir"], entry["mid_dir"], entry["cache_dir"], entry["im_ext"]) == ("", "", "", "")
    for sub in ("gt", "mask"):
        (tmp_path / "photos" / sub).mkdir()
    entry = datalist.from_folder(tmp_path / "photos")
    assert (entry["gt_dir"], entry["mid_dir"]) == (str(tmp_path / "photos/gt"), str(tmp_path / "photos/mask"))


@pytest.mark.parametrize("sub", ["im", ""])
def test_photographs_are_images_alone(tmp_path: Path, sub: str):
    (tmp_path / "streets" / sub).mkdir(parents=True)
    (tmp_path / "streets" / "gt").mkdir()  # not looked at: of a background nothing is asked for but its pixels
    entry = datalist.photographs(tmp_path / "streets")
    assert entry.keys() == KEYS
    assert entry["name"] == "streets"
    assert entry["im_dir"] == str(tmp_path / "streets" / sub).rstrip("/")
    assert not any(entry[key] for key in KEYS - {"name", "im_dir"})
    cached = datalist.photographs(tmp_path / "streets", cache=True)["cache_dir"]
    assert cached == datalist.from_folder(tmp_path / "streets", cache=True)["cache_dir"] != ""
    (tmp_path / "other" / "streets").mkdir(parents=True)
    assert datalist.photographs(tmp_path / "other" / "streets", cache=True)["cache_dir"] != cached
