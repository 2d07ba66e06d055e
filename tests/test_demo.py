"""Demo.ipynb: committed with pictures, and running on photographs, prompts and weights of the test's own."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import draw_sample
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from notebook_tools import pictures

import IS_Net
from IS_Net.images import write_image

NOTEBOOK = Path(IS_Net.__file__).parents[1] / "Demo.ipynb"


def run(folder: Path, weights: Path) -> nbformat.NotebookNode:
    """Execute the notebook on the photographs of ``folder``, from a working directory elsewhere."""
    notebook = nbformat.read(NOTEBOOK, 4)
    settings = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "prompts = " in settings.source and "sam_model = " in settings.source
    settings.source = (
        "from pathlib import Path\n"
        f"folder = Path({str(folder)!r})\nweights = Path({str(weights)!r})\n"
        "test_set = folder.parent / 'tiny'\n"
        "photos, prompts, figures = folder / 'im', folder / 'prompts.json', folder / 'pic'\n"
        "trained, sam_model, device = 'not trained at all', 'box', 'cpu'"
    )
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    return client.execute()


def test_the_notebook_is_committed_with_pictures():
    assert NOTEBOOK.stat().st_size < 3_000_000
    notebook = nbformat.read(NOTEBOOK, 4)
    found = pictures(notebook)
    assert len(found) == 3 and all(np.asarray(picture).std() > 20 for picture in found)
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert str(Path.home()) not in said


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, weights, make_dataset):
    make_dataset("tiny")
    tmp_path = tmp_path / "photos"
    image, gt, _ = draw_sample(0, 150, 200)
    write_image(tmp_path / "im" / "ring.jpg", image)
    write_image(tmp_path / "im" / "turned.png", image[::-1].copy())
    box = [int(f(np.flatnonzero((gt > 128).any(axis)))) for f in (np.min, np.max) for axis in (0, 1)]
    prompts = {"ring": [{"object": "ring", "box": box}], "turned": [{"object": "ring", "box": [20, 10, 180, 140]}]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    notebook = run(tmp_path, weights)
    assert len(pictures(notebook)) == 3
    assert {path.name for path in (tmp_path / "pic").iterdir()} == {
        *("demo_test.png", "demo_one.png", "demo_all.png", "demo_ring.png", "demo_turned.png")
    }


@pytest.mark.slow
def test_without_weights_the_notebook_says_what_to_do(tmp_path):
    with pytest.raises(CellExecutionError, match="comes with the project"):
        run(tmp_path, tmp_path / "gone.safetensors")
