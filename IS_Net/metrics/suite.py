"""The registry of all metrics, in the order of the published tables, with their figures and column headings.

The names in ``--metrics`` and ``hypar["metrics"]`` and the columns of all tables come from this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from IS_Net.metric_names import ALL, choose
from IS_Net.metrics.boundary_accuracy import BoundaryAccuracy
from IS_Net.metrics.emeasure import EMeasure
from IS_Net.metrics.fmeasure import KINDS, FMeasure
from IS_Net.metrics.hce import HCE
from IS_Net.metrics.iou import BoundaryIoU, IoU
from IS_Net.metrics.mae import MAE
from IS_Net.metrics.pair import Metric, Pair
from IS_Net.metrics.smeasure import SMeasure
from IS_Net.metrics.weighted_fmeasure import WeightedFMeasure


class Figure(NamedTuple):
    """One number that a metric computes: a column of the tables."""

    heading: str
    meaning: str
    published: bool = True
    """Whether papers report it. The first table of the HTML report shows only such figures."""
    higher_is_better: bool = True
    digits: int = 4
    """Number of decimals in tables."""
    of_one: str | None = None
    """The heading for a single image. None: the same. "": not shown, because it equals another figure there."""


class Family(NamedTuple):
    """A metric: the function that creates its accumulator, and its figures by the keys of ``compute()``."""

    make: Callable[[], Metric]
    figures: Mapping[str, Figure]
    slow_gt: frozenset[str] = frozenset()
    """The slow parts of the ground truth that it needs; see ``IS_Net.metrics.pair.PARTS``."""


def _f(kind: str, definition: str) -> Figure:
    names = {"mean_curve": "mean curve", "mean_pr": "mean P, R"}
    source = {
        "mean_curve": "the average of the images' F-curves",
        "mean_pr": "the F-curve of precision and recall averaged over the images",
    }
    taken = {
        "max": "maximum of",
        "mean": "mean over the thresholds of",
        "adaptive": "value at an adaptive threshold, twice each map's mean, of",
    }
    return Figure(
        f"{kind} F ({names[definition]})",
        f"{taken[kind]} {source[definition]}",
        published=kind == "max",
        of_one=f"{kind} F" if definition == "mean_curve" else "",
    )


FAMILIES: dict[str, Family] = {
    "f": Family(
        lambda: FMeasure(KINDS),
        {f"{kind}_f_{of}": _f(kind, of) for kind in KINDS for of in ("mean_curve", "mean_pr")},
    ),
    "wf": Family(
        WeightedFMeasure,
        {"weighted_f": Figure("wF", "weighted F-measure")},
        slow_gt=frozenset({"distance"}),
    ),
    "mae": Family(MAE, {"mae": Figure("MAE", "mean absolute error", higher_is_better=False)}),
    "s": Family(SMeasure, {"s_measure": Figure("Sm", "S-measure: structural similarity by object and by region")}),
    "e": Family(
        EMeasure,
        {
            "max_e": Figure("max Em", "maximum of the average of the images' E-curves", published=False),
            "mean_e": Figure("mean Em", "E-measure (enhanced alignment), mean over the thresholds"),
            "adaptive_e": Figure(
                "adaptive Em", "E-measure at an adaptive threshold, twice each map's mean", published=False
            ),
        },
    ),
    "hce": Family(
        HCE,
        {"hce": Figure("HCE", "human correction effort in clicks", higher_is_better=False, digits=1)},
        slow_gt=frozenset({"skeleton"}),
    ),
    "iou": Family(
        IoU,
        {
            "iou": Figure("mIoU", "intersection over union at > 128, mean over the images", of_one="IoU"),
            "pooled_iou": Figure("pooled IoU", "sum of the intersections divided by the sum of the unions", of_one=""),
        },
    ),
    "biou": Family(
        BoundaryIoU,
        {
            "boundary_iou": Figure(
                "mBIoU", "boundary IoU: that of the masks' boundaries, 2 % of the diagonal wide", of_one="BIoU"
            )
        },
    ),
    "mba": Family(
        BoundaryAccuracy,
        {"mba": Figure("mBA", "mean boundary accuracy: pixel accuracy in five bands around the edge")},
    ),
}

FIGURES: dict[str, Figure] = {key: figure for family in FAMILIES.values() for key, figure in family.figures.items()}
"""Every figure by its key, in the order of the tables."""


class Suite(Metric):
    """Several metrics that measure the same pairs and share their counts.

    Args:
        names: Names of metrics; the format is that of :func:`IS_Net.metric_names.choose`.

    Raises:
        ValueError: If a name is unknown, or no name is given.
    """

    def __init__(self, names: str | Iterable[str] = ALL) -> None:
        super().__init__()
        chosen = choose(names if isinstance(names, str) else ",".join(names))
        self.metrics = {name: FAMILIES[name].make() for name in chosen}

    @property
    def slow_gt(self) -> frozenset[str]:
        """The slow parts of the ground truth that any of them needs; see ``IS_Net.metrics.pair.PARTS``."""
        return frozenset().union(*(FAMILIES[name].slow_gt for name in self.metrics))

    def measure(self, pair: Pair) -> dict[str, Any]:
        """Return the measures of one image by metric name."""
        return {name: metric.measure(pair) for name, metric in self.metrics.items()}

    def add(self, measured: Mapping[str, Any]) -> None:
        """Add the measures of one image."""
        for name, metric in self.metrics.items():
            metric.add(measured[name])
        self._images += 1

    def mean(self) -> dict[str, Any]:
        """Return the mean measures by metric name."""
        return {name: metric.mean() for name, metric in self.metrics.items()}

    def compute(self) -> dict[str, float]:
        """Return all figures over all images, in the order of ``FIGURES``; nan without images."""
        figures: dict[str, float] = {}
        for name, metric in self.metrics.items():
            computed = metric.compute()
            figures.update((key, computed[key]) for key in FAMILIES[name].figures)
        return figures

    def curves(self) -> dict[str, np.ndarray]:
        """Return the measured ones of ``f``, ``precision``, ``recall`` and ``e`` at the thresholds 0..255: (256,)."""
        curves: dict[str, np.ndarray] = {}
        if isinstance(f_measure := self.metrics.get("f"), FMeasure):
            curves |= f_measure.curves()
        if isinstance(e_measure := self.metrics.get("e"), EMeasure):
            curves["e"] = e_measure.curve()
        return curves

    @property
    def images(self) -> int:
        """The number of images that were added."""
        return self._images


def mean_figures(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each figure over several data sets; all data sets have the same weight."""
    return {key: sum(result[key] for result in results) / len(results) for key in results[0]}
