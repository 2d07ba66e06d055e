"""What the tests of the notebooks share."""

from __future__ import annotations

import base64
import io

import nbformat
from PIL import Image


def pictures(notebook: nbformat.NotebookNode) -> list[Image.Image]:
    """Return the pictures that the cells of a notebook show."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    coded = [output.data["image/jpeg"] for output in outputs if "image/jpeg" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(code))) for code in coded]
