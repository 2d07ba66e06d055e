"""All metrics by name, in the order of the published tables: which there are, what they give, and how that is headed.

The names of ``--metrics`` and ``hypar["metrics"]``, and the columns of every table, come from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from IS_Net.metric_names import ALL, choose
from IS_Net.metrics.emeasure import EMeasure
from IS_Net.metrics.fmeasure import KINDS, FMeasure
from IS_Net.metrics.hce import HCE
from IS_Net.metrics.iou import BoundaryIoU, IoU
from IS_Net.metrics.mae import MAE
from IS_Net.metrics.pair import Metric, Pair
from IS_Net.metrics.smeasure import SMeasure
from IS_Net.metrics.weighted_fmeasure import WeightedFMeasure


class Figure(NamedTuple):
    """One number that a metric gives: a column of the tables."""

    heading: str
    meaning: str
    published: bool = True
    """Whether the papers' tables have it; the short tables show no others."""
    higher_is_better: bool = True
    digits: int = 4
    of_one: str | None = None
    """The heading where it stands for a single image; None: the same; "": another figure is equal to it there."""


class Family(NamedTuple):
    """A metric by what makes an accumulator of it, and its figures by the keys of ``compute()``."""

    make: Callable[[], Metric]
    figures: Mapping[str, Figure]
    slow_gt: frozenset[str] = frozenset()
    """The parts that it looks at of what :meth:`IS_Net.metrics.GroundTruth.arrays` gives."""


def _f(kind: str, definition: str) -> Figure:
    names = {"mean_curve": "mean curve", "mean_pr": "mean P, R"}
    of = {
        "mean_curve": "the images' F-curves averaged",
        "mean_pr": "the F-curve of precision and recall averaged over the images",
    }
    taken = {
        "max": "the maximum of",
        "mean": "the mean over the thresholds of",
        "adaptive": "at twice each map's mean instead of a threshold for all, from",
    }
    return Figure(
        f"{kind} F ({names[definition]})",
        f"{taken[kind]} {of[definition]}",
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
        {"weighted_f": Figure("wF", "weighted F-measure, without thresholds")},
        slow_gt=frozenset({"distance"}),
    ),
    "mae": Family(MAE, {"mae": Figure("MAE", "mean absolute error", higher_is_better=False)}),
    "s": Family(SMeasure, {"s_measure": Figure("Sm", "S-measure, structure by object and by region")}),
    "e": Family(
        EMeasure,
        {
            "max_e": Figure("max Em", "the maximum of the images' E-curves averaged", published=False),
            "mean_e": Figure("mean Em", "E-measure, alignment, mean over the thresholds"),
            "adaptive_e": Figure("adaptive Em", "E-measure at twice each map's mean", published=False),
        },
    ),
    "hce": Family(
        HCE,
        {"hce": Figure("HCE", "human correction effort, in clicks", higher_is_better=False, digits=1)},
        slow_gt=frozenset({"skeleton"}),
    ),
    "iou": Family(IoU, {"iou": Figure("mIoU", "intersection over union at > 128", of_one="IoU")}),
    "biou": Family(
        BoundaryIoU,
        {
            "boundary_iou": Figure(
                "mBIoU", "intersection over union of the boundaries, 2 % of the diagonal wide", of_one="BIoU"
            )
        },
    ),
}

FIGURES: dict[str, Figure] = {key: figure for family in FAMILIES.values() for key, figure in family.figures.items()}
"""Every figure by its key, in the order of the tables."""


class Suite(Metric):
    """Several metrics that are measured on the same pairs, and so share what they count.

    Args:
        names: As :func:`choose` takes them.
    """

    def __init__(self, names: str | Iterable[str] = ALL) -> None:
        super().__init__()
        chosen = choose(names if isinstance(names, str) else ",".join(names))
        self.metrics = {name: FAMILIES[name].make() for name in chosen}

    @property
    def slow_gt(self) -> frozenset[str]:
        """The parts that any of them looks at of what :meth:`IS_Net.metrics.GroundTruth.arrays` gives."""
        return frozenset().union(*(FAMILIES[name].slow_gt for name in self.metrics))

    def measure(self, pair: Pair) -> dict[str, Any]:
        """Return each metric's measure of one image, by the metric's name."""
        return {name: metric.measure(pair) for name, metric in self.metrics.items()}

    def add(self, measured: Mapping[str, Any]) -> None:
        """Add one image's measures."""
        for name, metric in self.metrics.items():
            metric.add(measured[name])
        self._images += 1

    def mean(self) -> dict[str, Any]:
        """Return each metric's mean measure."""
        return {name: metric.mean() for name, metric in self.metrics.items()}

    def compute(self) -> dict[str, float]:
        """Return all figures over all images, by the keys of ``FIGURES`` and in their order; nan without images."""
        figures: dict[str, float] = {}
        for name, metric in self.metrics.items():
            computed = metric.compute()
            figures.update((key, computed[key]) for key in FAMILIES[name].figures)
        return figures

    def curves(self) -> dict[str, np.ndarray]:
        """Return what was measured of ``f``, ``precision``, ``recall`` and ``e`` at the thresholds 0..255, (256,)."""
        curves: dict[str, np.ndarray] = {}
        if isinstance(f_measure := self.metrics.get("f"), FMeasure):
            curves |= f_measure.curves()
        if isinstance(e_measure := self.metrics.get("e"), EMeasure):
            curves["e"] = e_measure.curve()
        return curves

    @property
    def images(self) -> int:
        """How many images were added."""
        return self._images


def mean_figures(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each figure over several data sets, which count the same whatever their size."""
    return {key: sum(result[key] for result in results) / len(results) for key in results[0]}
