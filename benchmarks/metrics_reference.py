"""The reference side of benchmarks/metrics.py, which runs it in the environment of pysodmetrics.

Reads lines of JSON, ``{"images": FILE.npz, "metric": NAME}``; times one step of that metric on the pair (the map
divided by 255 and the ground truth binarized before), and prints the seconds.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import cv2
import numpy as np
import py_sod_metrics as sod

METRICS = {
    "MAE": sod.MAE,
    "F": sod.Fmeasure,
    "weighted F": sod.WeightedFmeasure,
    "S": sod.Smeasure,
    "E": sod.Emeasure,
    "HCE": sod.HumanCorrectionEffortMeasure,
}


def main() -> None:
    """Answer until the input ends."""
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    file, pred, gt = None, None, None
    for line in sys.stdin:
        wanted = json.loads(line)
        if wanted["images"] != file:
            file = wanted["images"]
            images = np.load(file)
            pred, gt = images["pred"] / 255, images["gt"] > 128
        metric = METRICS[wanted["metric"]]()
        started = time.perf_counter()
        metric.step(pred, gt, normalize=False)
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
