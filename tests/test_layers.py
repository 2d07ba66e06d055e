"""The import rule: imports run one way, from dis_sam to sam to IS_Net, and inside each package from top to bottom.

    python tests/test_layers.py

prints the layers with their modules.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS: list[tuple[str, str]] = [
    (
        "front door",
        "dis_sam.__main__ dis_sam.cli dis_sam.sharding dis_sam.check dis_sam.fetch dis_sam.cut dis_sam.compare "
        "dis_sam.serve dis_sam.export dis_sam.benchmark",
    ),
    ("runs over photographs", "dis_sam.batch dis_sam.photo_work dis_sam.tars dis_sam.comparison"),
    ("inputs, model and outputs of a run", "dis_sam.inputs dis_sam.model_choice dis_sam.destination dis_sam.records"),
    ("front door, Python", "dis_sam"),
    ("annotations", "dis_sam.formats"),
    ("both stages", "dis_sam.pipeline"),
    ("forms of a result", "dis_sam.outputs dis_sam.figure dis_sam.notebook dis_sam.arguments dis_sam.drawn"),
    ("stage 1, commands", "sam.generate_masks"),
    ("stage 1, runs", "sam.mask_work sam.mask_run sam.mask_folder sam.mask_items"),
    ("stage 1, models", "sam.backends sam.enrich sam.proposal"),
    ("stage 1, prompts", "sam.prompts"),
    ("stage 2, commands", "IS_Net.train_valid_inference_main IS_Net.evaluate IS_Net.import_weights"),
    (
        "stage 2, runs",
        "IS_Net.phases IS_Net.evaluation_work IS_Net.evaluation_outputs IS_Net.evaluation IS_Net.evaluation_data",
    ),
    (
        "loops",
        "IS_Net.engine IS_Net.preflight IS_Net.data_loader IS_Net.scoring IS_Net.report IS_Net.robustness "
        "IS_Net.predictor IS_Net.hub IS_Net.doctor",
    ),
    (
        "parts",
        "IS_Net.tasks IS_Net.training_prompts IS_Net.run_log IS_Net.cache IS_Net.samples IS_Net.checkpoint "
        "IS_Net.int8 IS_Net.onnx_weights IS_Net.synthesis IS_Net.runtime IS_Net.exporting",
    ),
    ("the paper", "IS_Net.models IS_Net.losses IS_Net.metrics IS_Net.augment"),
    ("pixels", "IS_Net.preprocess IS_Net.tensors IS_Net.compositing IS_Net.manifest IS_Net.grabcut"),
    (
        "machine",
        "IS_Net.images IS_Net.masks IS_Net.decoding IS_Net.device IS_Net.bounded IS_Net.worker IS_Net.distributed",
    ),
    (
        "ground",
        "IS_Net.hypar IS_Net.datalist IS_Net.paths IS_Net.metric_names IS_Net.command_line IS_Net.errors "
        "IS_Net.files IS_Net.lock IS_Net.machine IS_Net.allocator IS_Net.shards IS_Net.listing",
    ),
]
"""From top to bottom: a module may import from its own layer and those below it. A package stands for its modules."""

PACKAGES = ("dis_sam", "sam", "IS_Net")
BARE = {"sam", "IS_Net"}
"""Packages that hold nothing themselves."""
LIGHT = {
    "IS_Net.hypar",
    "IS_Net.datalist",
    "IS_Net.paths",
    "IS_Net.metric_names",
    "IS_Net.command_line",
    "IS_Net.errors",
    "IS_Net.files",
    "IS_Net.lock",
    "IS_Net.machine",
    "IS_Net.allocator",
    "IS_Net.shards",
    "IS_Net.listing",
}
LIGHT |= {
    "dis_sam",
    "dis_sam.__main__",
    "dis_sam.cli",
    "dis_sam.sharding",
    "dis_sam.check",
    "dis_sam.fetch",
    "dis_sam.cut",
    "dis_sam.compare",
    "dis_sam.arguments",
    "dis_sam.drawn",
    "dis_sam.export",
    "dis_sam.benchmark",
    "IS_Net.exporting",
    "dis_sam.serve.command",
    "dis_sam.serve.guard",
    "sam.generate_masks",
    "sam.backends",
    "sam.backends.base",
}
LIGHT |= {"IS_Net.train_valid_inference_main", "IS_Net.evaluate", "IS_Net.import_weights"}
"""Modules that ``dis-sam VERB --help`` imports; they load nothing heavy before they are asked to work."""
HEAVY = {"torch", "numpy", "cv2", "PIL", "skimage", "tensorboard", "segment_anything"}


def find_modules() -> dict[str, Path]:
    """Return the packages' modules by their dotted names."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


MODULES = find_modules()


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
    return {other for other in imported(tree(name)) if other in MODULES} - BARE - {name}


def layer_of(name: str) -> int:
    """Return the index of a module's layer; 0 is the top."""
    for index, (_, members) in enumerate(LAYERS):
        for member in members.split():
            if name == member or (name.startswith(f"{member}.") and member not in PACKAGES):
                return index
    raise AssertionError(f"{name} has no layer; add it to LAYERS, where its imports allow it")


def is_entry_point(name: str) -> bool:
    """Return whether a module can be run: it looks at ``__name__``."""
    guards = (node.test for node in tree(name).body if isinstance(node, ast.If))
    return name.endswith("__main__") or any("__name__" in ast.unparse(guard) for guard in guards)


ENTRY_POINTS = {name for name in MODULES if is_entry_point(name)}
NAMES = sorted(MODULES.keys() - BARE)


@pytest.mark.parametrize("name", NAMES)
def test_no_module_imports_upwards(name: str):
    upwards = {other for other in own_imports(name) if layer_of(other) < layer_of(name)}
    assert not upwards, f"{name} ({LAYERS[layer_of(name)][0]}) imports from higher layers: {sorted(upwards)}"


@pytest.mark.parametrize("name", NAMES)
def test_packages_import_one_way(name: str):
    below = {"dis_sam": set(PACKAGES), "sam": {"sam", "IS_Net"}, "IS_Net": {"IS_Net"}}[name.partition(".")[0]]
    assert {other.partition(".")[0] for other in own_imports(name)} <= below


def test_every_name_in_the_layers_exists():
    listed = [member for _, members in LAYERS for member in members.split()]
    assert set(listed) <= MODULES.keys()
    assert len(listed) == len(set(listed))


def test_imports_are_acyclic():
    assert list(TopologicalSorter({name: own_imports(name) for name in MODULES}).static_order())


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"dis_sam.__main__"}))
def test_no_module_imports_an_entry_point(name: str):
    assert not own_imports(name) & ENTRY_POINTS


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_light_modules_load_nothing_heavy(name: str):
    top = [node for node in tree(name).body if isinstance(node, ast.Import | ast.ImportFrom)]
    found = {other for node in top for other in imported(node)}
    assert not {other.partition(".")[0] for other in found} & HEAVY
    assert {other for other in found if other in MODULES} - BARE <= LIGHT


@pytest.mark.parametrize("name", sorted(MODULES.keys() - ENTRY_POINTS - {"IS_Net.command_line", "dis_sam.notebook"}))
def test_libraries_neither_print_nor_plot(name: str):
    called = {ast.unparse(node.func) for node in ast.walk(tree(name)) if isinstance(node, ast.Call)}
    assert not called & {"print", "logging.basicConfig", "sys.stdout.write", "sys.stderr.write"}
    assert not {top.partition(".")[0] for top in imported(tree(name))} & {"matplotlib", "IPython"}


@pytest.mark.parametrize("name", NAMES)
def test_the_product_imports_no_workshop(name: str):
    """Recipes, benchmarks, tests and sample data import the product, not the other way round."""
    tops = {other.partition(".")[0] for other in imported(tree(name))}
    assert not tops & {"recipes", "benchmarks", "tests", "data", "sample_scenes", "make_sample"}


NOTEBOOKS = sorted(path.relative_to(ROOT) for path in (*ROOT.glob("*.ipynb"), *(ROOT / "sam").rglob("*.ipynb")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_notebooks_use_the_product_alone(path: Path):
    cells = json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    lines = [line for line in code.splitlines() if not line.lstrip().startswith(("%", "!"))]
    names = set(imported(ast.parse("\n".join(lines))))
    assert not {name.partition(".")[0] for name in names} & {"recipes", "benchmarks", "tests", "data"}
    unknown = {name for name in names if name.partition(".")[0] in PACKAGES and name.rpartition(".")[0] not in MODULES}
    assert not unknown - MODULES.keys() - BARE
    if path.parts[0] == "sam":  # the notebook of stage 1 may not reach up to both stages
        assert not {name for name in names if name.partition(".")[0] == "dis_sam"}


def test_five_rooms_from_a_mask_to_the_network():
    """A mask's way from file to network: each of these modules imports the next, and no way leads back."""
    way = ["IS_Net.data_loader", "IS_Net.cache", "IS_Net.preprocess", "IS_Net.images"]
    for above, below in pairwise(way):
        assert below in own_imports(above)
        assert above not in own_imports(below)


if __name__ == "__main__":
    for place, (title, _) in enumerate(LAYERS):
        inside = [name for name in NAMES if layer_of(name) == place]
        print(f"{title:20} {' '.join(inside)}")
