"""Metrics, one file a family: accumulators that are fed with ``update(pred, gt)`` and read with ``compute()``."""

from IS_Net.metrics.fmeasure import FMeasure
from IS_Net.metrics.mae import MAE

__all__ = ["MAE", "FMeasure"]
