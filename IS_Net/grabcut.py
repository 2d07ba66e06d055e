"""The one call of OpenCV's GrabCut, which separates an object from its background by their colors."""

from __future__ import annotations

import cv2
import numpy as np


def grabcut(image: np.ndarray, labels: np.ndarray, iterations: int, seed: int) -> np.ndarray | None:
    """Segment an object whose place is roughly known (Rother et al., "GrabCut", SIGGRAPH 2004).

    Args:
        image: (h, w, 3) uint8 RGB.
        labels: (h, w) uint8 of ``cv2.GC_BGD`` and ``cv2.GC_FGD`` (certain), ``cv2.GC_PR_BGD`` and ``cv2.GC_PR_FGD``
            (likely, may change). It is not modified. A box is ``GC_PR_FGD`` inside and ``GC_BGD`` outside.
        iterations: Number of iterations, at least 1.
        seed: Seed of OpenCV's random numbers; the same seed gives the same mask.

    Returns:
        (h, w) bool, where the object is. None if nothing is found, or if the labels leave too few pixels of object or
        background to learn their colors from.
    """
    labels = labels.copy()
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(seed)
    try:
        cv2.grabCut(image, labels, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        return None
    found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return found if found.any() else None
