"""Demo.ipynb: committed with pictures, and running on photographs, prompts and weights of the test's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import draw_sample
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from notebook_tools import pictures
from PIL import Image

import IS_Net
from IS_Net.images import write_image

NOTEBOOK = Path(IS_Net.__file__).parents[1] / "Demo.ipynb"


SMALL_SAM = f"""
import sys
sys.path.append({str(NOTEBOOK.parent / "tests/sam")!r})
from tiny_sam import save_sam, tiny_sam
from sam import backends
from sam.backends import segment_anything
segment_anything.BUILDERS["vit_b"] = tiny_sam
backends.sam_checkpoint_folders = lambda: [folder]
save_sam(folder / "sam_vit_b_01ec64.pth")
"""
"""Puts a small SAM of random weights where the notebook looks for a checkpoint."""


def run(folder: Path, weights: Path, sam_model: str = "box") -> nbformat.NotebookNode:
    """Execute the notebook on the photographs of ``folder``, from a working directory elsewhere.

    ``sam_model`` is that of the notebook; ``auto`` finds a small SAM. At the end, the rows of the first figure are
    printed.
    """
    notebook = nbformat.read(NOTEBOOK, 4)
    settings = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "prompts = " in settings.source and "sam_model = " in settings.source
    settings.source = (
        "from pathlib import Path\n"
        f"folder = Path({str(folder)!r})\nweights = Path({str(weights)!r})\n"
        "test_set = folder.parent / 'tiny'\n"
        "photos, prompts, figures = folder / 'im', folder / 'prompts.json', folder / 'pic'\n"
        f"sam_model, device, polygon = {sam_model!r}, 'cpu', [(20, 20), (90, 30), (60, 100)]"
    )
    if sam_model == "auto":
        settings.source += SMALL_SAM
    notebook.cells.append(nbformat.v4.new_code_cell("print('rows:', *results, sep=' | ')"))
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    return client.execute()


def printed(notebook: nbformat.NotebookNode) -> str:
    """Return what the cells print, and the text form of what they show."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)


def test_the_notebook_is_committed_with_pictures():
    assert NOTEBOOK.stat().st_size < 1_000_000
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    found = pictures(notebook)
    assert len(found) == 4 and all(np.asarray(picture).std() > 20 for picture in found)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # run once, from top to bottom
    said = printed(notebook)
    assert "stage 1:" in said and "box = (" in said
    assert str(Path.home()) not in said and not re.search(r"(^|[\s'\"(])(/|[A-Z]:\\)\w", said), "a path of a machine"
    assert "widgets" not in notebook.metadata and "widget-view" not in json.dumps(notebook)  # code hosts show none


def test_texts_are_short():
    texts = [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "markdown"]
    assert texts and max(map(len, texts)) < 1000


@pytest.mark.slow
@pytest.mark.parametrize("sam_model", ["box", "auto"])
def test_the_notebook_runs(sam_model, tmp_path, weights, make_dataset):
    make_dataset("tiny")
    tmp_path = tmp_path / "photos"
    image, gt, _ = draw_sample(0, 150, 200)
    write_image(tmp_path / "im" / "ring.jpg", image)
    write_image(tmp_path / "im" / "turned.png", image[::-1].copy())
    box = [int(f(np.flatnonzero((gt > 128).any(axis)))) for f in (np.min, np.max) for axis in (0, 1)]
    prompts = {"ring": [{"object": "ring", "box": box}], "turned": [{"object": "ring", "box": [20, 10, 180, 140]}]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    notebook = run(tmp_path, weights, sam_model)
    assert len(pictures(notebook)) == 4
    said = printed(notebook)
    assert f"box = {tuple(box)}" in said
    assert ("stage 1: SAM vit_b" if sam_model == "auto" else "stage 1: no SAM checkpoint") in said
    sam_row = " | SAM vit_b" if sam_model == "auto" else ""
    assert f"rows: | the box alone | once more | a rough mask{sam_row}\n" in said
    assert "widget-view" not in json.dumps(notebook)  # nobody draws here, and the coordinates remain
    assert {path.name for path in (tmp_path / "pic").iterdir()} == {
        *("demo_test.png", "demo_one.png", "demo_all.png", "demo_ring.png", "demo_turned.png")
    }
    with Image.open(tmp_path / "pic" / "demo_turned.png") as cutout:
        assert cutout.mode == "RGBA" and cutout.size == (200, 150)


@pytest.mark.slow
def test_without_weights_the_notebook_says_what_to_do(tmp_path):
    with pytest.raises(CellExecutionError, match="comes with the project"):
        run(tmp_path, tmp_path / "gone.safetensors")
