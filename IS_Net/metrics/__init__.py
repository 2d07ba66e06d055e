"""Metrics, one file a family: accumulators that are fed with ``update(pred, gt)`` and read with ``compute()``.

``pair`` holds what they share: :class:`GroundTruth` computes what depends on the ground truth alone once for many
predictions, and :class:`Pair` is counted once for many metrics.

No metric stretches a map. The published evaluation code does, from the map's minimum and maximum to 0 and 1, and that
turns "nothing found" into something: the faintest noise of an otherwise empty map becomes a confident object. It was
left out on purpose.
"""

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
    "BoundaryIoU",
    "EMeasure",
    "FMeasure",
    "GroundTruth",
    "IoU",
    "Metric",
    "Pair",
    "SMeasure",
    "WeightedFMeasure",
    "boundary_iou",
    "iou",
]
