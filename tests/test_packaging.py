"""The installed project: dependencies, extras, package data, and a wheel that works outside the checkout."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_layers import MODULES, imported

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # a dependency of pytest there

ROOT = Path(__file__).resolve().parents[1]
IMPORT_NAMES = {"cv2": "opencv-python-headless", "PIL": "pillow", "skimage": "scikit-image"}
IMPORT_NAMES |= {"starlette": "fastapi", "pydantic": "fastapi"}  # which brings both
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CORE = ("torch", "numpy", "opencv-python-headless", "pillow", "safetensors", "tqdm", "platformdirs", "filelock")
PUBLISHED = ("torch", "torchvision", "numpy", "opencv-python-headless", "scikit-image", "tqdm", "segment-anything")


def requirements(lines: Iterator[str] | list[str]) -> dict[str, set[str]]:
    """Return the version ranges by package; markers are ignored."""
    found: dict[str, set[str]] = {}
    for line in lines:
        if line.strip() and not line.lstrip().startswith(("#", "-")):
            requirement = Requirement(line.partition(" #")[0])
            found.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    return found


def lines_of(name: str) -> list[str]:
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


def extras() -> dict[str, list[str]]:
    return CONFIG["project"]["optional-dependencies"]


def declared() -> dict[str, set[str]]:
    """Return all ranges that the project declares, the extras' included."""
    everything = list(CONFIG["project"]["dependencies"])
    everything += [line for lines in extras().values() for line in lines if not line.startswith("dis-sam[")]
    return requirements(everything)


def test_the_core_is_what_predicting_needs():
    assert requirements(CONFIG["project"]["dependencies"]).keys() == set(CORE)


def test_extras():
    assert {"sam", "fast", "train", "eval", "notebook", "import", "dev", "all"} <= extras().keys()
    assert extras()["all"] == ["dis-sam[sam,fast,train,eval,notebook,import,formats,serve]"]
    assert "dis-sam[all,hub]" in extras()["dev"]


def test_requirements_install_what_users_of_the_published_project_expect():
    found = requirements(lines_of("requirements.txt"))
    assert set(PUBLISHED) | set(CORE) <= found.keys()
    assert "-e ." in lines_of("requirements.txt")
    assert {name: declared()[name] for name in found} == found  # one range a package


def test_constraints_pin_every_dependency_inside_its_range():
    pins = requirements(lines_of("constraints.txt"))
    for name, ranges in declared().items():
        versions = {pin.removeprefix("==") for pin in pins[name]}
        assert versions
        for specifier in ranges:
            assert all(Requirement(f"{name}{specifier}").specifier.contains(version) for version in versions), name


def test_there_is_one_opencv():
    everything = {*declared(), *requirements(lines_of("constraints.txt"))}
    assert {name for name in everything if "opencv" in name} == {"opencv-python-headless"}


@pytest.mark.parametrize("name", ["requirements.txt", "constraints.txt"])
def test_dependencies_come_by_name(name: str):
    """No file of one machine, no address of one server."""
    assert not [line for line in lines_of(name) if re.search(r"://|@ |--(extra-)?index-url|--find-links", line)]


SCRIPTS = [*(ROOT / "data").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]


def third_party(tree: ast.AST) -> set[str]:
    """Return the distributions that code imports from, without the standard library and the project."""
    own = {"IS_Net", "sam", "dis_sam", "recipes", "sample_scenes", *(path.stem for path in SCRIPTS)}
    tops = {name.partition(".")[0] for name in imported(tree)}
    return {canonicalize_name(IMPORT_NAMES.get(top, top)) for top in tops - own - set(sys.stdlib_module_names)}


def test_what_is_imported_is_declared():
    used = {name for path in (*MODULES.values(), *SCRIPTS) for name in third_party(ast.parse(path.read_text("utf-8")))}
    assert not used - declared().keys()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_import_the_core_alone_at_their_top(name: str):
    """Everything else is an extra, imported when it is needed, with a message that names the extra."""
    body = ast.parse(MODULES[name].read_text(encoding="utf-8")).body
    top = ast.Module([node for node in body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    allowed = {
        "sam.backends.segment_anything": {"segment-anything", "torchvision"},
        "dis_sam.serve.app": {"fastapi"},
        "dis_sam.serve.server": {"fastapi"},
        "IS_Net.runtime.openvino_runtime": {"openvino"},
        "IS_Net.runtime.ncnn_runtime": {"ncnn"},
        "IS_Net.runtime.onnx_runtime": {"onnxruntime"},
    }
    assert third_party(top) <= set(CORE) | allowed.get(name, set())


def test_every_package_is_installed():
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(CONFIG["tool"]["setuptools"]["packages"]) == packages | {"IS_Net.weights"}


# --- a wheel ---


@pytest.fixture(scope="module")
def wheel_environment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build a wheel of the tracked files and install it into a fresh environment; return python and site-packages."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "pic/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("dis_sam-*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    install = [*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # the dependencies are the test environment's; the project itself must come from the wheel alone
    inherited = [path for path in sys.path if path.endswith("site-packages")]
    (site / "inherited.pth").write_text("\n".join(inherited))
    return python, site


def run_outside(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the environment's python in a folder of its own, as a user with an empty home."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "DIS_SAM", "XDG"))}
    environment |= {"HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "DIS_SAM_RUNTIME": "torch"}
    folder.mkdir(exist_ok=True)
    return subprocess.run([str(python), *arguments], cwd=folder, env=environment, capture_output=True, text=True)


REFINE = """
import sys
import numpy as np
import IS_Net, dis_sam
from IS_Net import paths
from dis_sam import refine
assert "wheel" in IS_Net.__file__ and paths.checkout() is None, IS_Net.__file__
assert paths.starter_weights().is_file()
image = np.full((120, 160, 3), 200, np.uint8)
image[30:90, 40:120] = 30
mask = np.zeros((120, 160), np.uint8)
mask[34:84, 46:112] = 255
alpha = refine(image, mask)
assert alpha.shape == (120, 160) and alpha.dtype == np.float32
inside, outside = alpha[40:80, 50:110].mean(), alpha[:20].mean()
assert inside > 0.9 and outside < 0.1, (inside, outside)
print("refined", dis_sam.__version__)
"""


def installed_files(site: Path) -> dict[Path, int]:
    """Return the project's installed files, without byte code, with their times of change."""
    paths = [path for package in ("IS_Net", "sam", "dis_sam") for path in (site / package).rglob("*")]
    return {path: path.stat().st_mtime_ns for path in paths if path.is_file() and path.suffix != ".pyc"}


@pytest.mark.slow
def test_a_wheel_refines_a_mask_outside_the_checkout(wheel_environment, tmp_path: Path):
    python, site = wheel_environment
    before = installed_files(site)
    done = run_outside(python, tmp_path / "elsewhere", "-c", REFINE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refined")
    assert installed_files(site) == before
    assert not (tmp_path / "elsewhere" / "home").exists()  # a prediction with PyTorch writes nothing


@pytest.mark.slow
def test_a_wheel_brings_the_command(wheel_environment, tmp_path: Path):
    python, _ = wheel_environment
    done = run_outside(python, tmp_path / "elsewhere", "-m", "dis_sam.cli", "check", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "dis_sam_starter.safetensors" in done.stdout
    assert (python.parent / "dis-sam").is_file()
    assert not (tmp_path / "elsewhere" / "home").exists()  # a report writes nothing


@pytest.mark.slow
def test_a_missing_extra_names_the_line_that_installs_it(wheel_environment, tmp_path: Path):
    python, _ = wheel_environment
    code = (
        "import sys; sys.modules['segment_anything'] = None\n"
        "from IS_Net.errors import import_extra\n"
        "import_extra('segment_anything', 'sam')"
    )
    done = run_outside(python, tmp_path / "elsewhere", "-c", code)
    assert done.returncode == 1
    assert "pip install 'dis-sam[sam]'" in done.stderr
