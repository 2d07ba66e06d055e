"""The notebook of stage 1: committed with pictures, and running."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from notebook_tools import pictures
from test_generate_masks import files, make_split

import sam

NOTEBOOK = Path(sam.__file__).parent / "notebooks" / "automatic_mask_generator_example.ipynb"


def test_notebook_is_committed_with_pictures() -> None:
    assert NOTEBOOK.stat().st_size < 2_000_000
    notebook = nbformat.read(NOTEBOOK, 4)
    found = pictures(notebook)
    assert len(found) == 2 and all(np.asarray(picture).std() > 20 for picture in found)
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "masks written" in said and "/" not in said  # no path of the machine that ran it


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path, weights: Path) -> None:
    split = make_split(tmp_path / "DIS-VD", {"a": (20, 20, 120, 90), "b": None}, (120, 160))
    photos = make_split(tmp_path / "photos", {"c": None}, (120, 160))
    record = {"box": [20, 20, 120, 90], "points": [[50, 50], [9, 9]], "labels": [1, 0]}
    (photos / "prompts.json").write_text(json.dumps({"c": [record]}))
    notebook = nbformat.read(NOTEBOOK, 4)
    settings = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "FOLDERS" in settings.source
    settings.source = (
        f"from pathlib import Path\nFOLDERS = [Path({str(photos)!r}), Path({str(split)!r})]\n"
        f"MODEL, SELECT, SHOWN, STAGE_2 = 'box', 'score', 2, Path({str(weights)!r})"
    )
    cwd = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=cwd).execute()
    assert len(pictures(notebook)) == 2
    assert files(split / "mask") == {"a.png", "b.png"} and files(photos / "mask") == {"c.png"}
