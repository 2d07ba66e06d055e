"""Metrics, one file for each family: accumulators with ``update(pred, gt)`` and ``compute()``.

The metrics share their intermediate results through the module ``pair``: a :class:`GroundTruth` computes what depends
only on the ground truth, once for many predictions; a :class:`Pair` computes what several metrics need of one
prediction.

No metric stretches a map. The published evaluation code rescales each map so that its minimum becomes 0 and its maximum
1. That turns the noise of an empty map into a confident object, so this project leaves it out.
"""

from IS_Net.metrics.boundary_accuracy import BoundaryAccuracy, boundary_accuracy
from IS_Net.metrics.emeasure import EMeasure
from IS_Net.metrics.fmeasure import FMeasure
from IS_Net.metrics.hce import HCE
from IS_Net.metrics.iou import BoundaryIoU, IoU, boundary_iou, iou
from IS_Net.metrics.mae import MAE
from IS_Net.metrics.pair import GroundTruth, Metric, Pair
from IS_Net.metrics.smeasure import SMeasure
from IS_Net.metrics.weighted_fmeasure import WeightedFMeasure

__all__ = [
    "HCE",
    "MAE",
    "BoundaryAccuracy",
    "BoundaryIoU",
    "EMeasure",
    "FMeasure",
    "GroundTruth",
    "IoU",
    "Metric",
    "Pair",
    "SMeasure",
    "WeightedFMeasure",
    "boundary_accuracy",
    "boundary_iou",
    "iou",
]
