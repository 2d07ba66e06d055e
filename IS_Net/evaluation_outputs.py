"""The outputs of an evaluation: tables, the HTML report, and the contact sheet of the worst results."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from IS_Net.errors import ImageError
from IS_Net.evaluation_data import PERFECT, DataSet
from IS_Net.images import encode_image, read_image, read_mask
from IS_Net.report import Picture, Scores, csv_text, html_page, json_text, robustness_page, worst_sheet

logger = logging.getLogger(__name__)


def contents(
    data_sets: Sequence[DataSet], results: Sequence[Scores], outputs: Mapping[str, Path], worst: int
) -> dict[str, bytes]:
    """Return the contents of output files.

    Args:
        data_sets: The evaluated data sets.
        results: Their scores.
        outputs: Files by their kind: ``csv``, ``json``, ``html`` or ``sheet``.
        worst: Number of worst results in the HTML report, for each method and data set, and on the contact sheet.
    """
    by_name = {data_set.name: data_set for data_set in data_sets}

    def pictures(scores: Scores, name: str) -> Iterator[Picture]:
        return _pictures(by_name[scores.data_set], scores.method, name)

    varied = any(scores.prompt for scores in results)
    render = {
        "csv": lambda: csv_text(results),
        "json": lambda: json_text(results),
        "html": lambda: robustness_page(results) if varied else html_page(results, pictures, worst),
    }
    # the name of a file may contain bytes that are not text
    files = {kind: make().encode("utf-8", "backslashreplace") for kind, make in render.items() if kind in outputs}
    if "sheet" in outputs:
        files["sheet"] = encode_image(worst_sheet(results, pictures, worst), outputs["sheet"].suffix.lower())
    return files


def _pictures(data_set: DataSet, method: str, name: str) -> Iterator[Picture]:
    kinds = {prediction.method: prediction.kind for prediction in data_set.predictions}
    coarse = {} if method in data_set.coarse else data_set.masks
    if method in kinds:
        coarse = {} if kinds[method] in (None, PERFECT) else data_set.maps[kinds[method]]
    readers = [
        ("image", data_set.images, read_image),
        ("ground truth", data_set.gts, read_mask),
        ("coarse mask", coarse, read_mask),
        (method, data_set.thumbnails.get(method) or data_set.maps[method], read_mask),
    ]
    for caption, paths, read in readers:
        if name in paths:
            try:
                yield caption, read(paths[name])
            except ImageError as error:  # an image or a coarse mask; the others could be scored
                logger.warning("left out of the report: %s", error)
