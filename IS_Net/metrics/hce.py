"""Human correction effort."""

from __future__ import annotations

import cv2
import numpy as np

from IS_Net.images import binarize
from IS_Net.metrics.pair import Metric, Pair

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


class HCE(Metric):
    """Human correction effort (Qin et al., ECCV 2022): an estimate of the clicks that correct a mask. Lower is better.

    Errors that an opening with radius ``relax`` removes are ignored, unless they break the skeleton of the ground
    truth. Among the remaining false positives and false negatives, each separate region costs one click, and a border
    that must be redrawn costs the corners of a polygon within ``epsilon`` pixels of it.

    - Thresholds: map and ground truth are binarized at > 128, at the ground truth's own size.
    - Stretching: none.
    - Empty maps: the cost of adding the whole object, at least 1; 0 if the ground truth is empty too.
    - Empty ground truths: the cost of removing the foreground that is not ignored.

    A perfect map costs 0.

    The result depends on the order in which OpenCV lists the points of a contour, which changed in OpenCV 4.13: older
    versions give slightly different numbers for about a third of all images, in the published code as well. Compare
    only figures from the same side of that version.

    Args:
        relax: Width of ignored errors in pixels.
        epsilon: Largest distance between a border and its polygon in pixels.
    """

    def __init__(self, relax: int = 5, epsilon: float = 2.0) -> None:
        super().__init__()
        self.relax = relax
        self.epsilon = epsilon

    def measure(self, pair: Pair) -> int:
        """Return the effort for one image, an integer >= 0."""
        gt, pred = pair.gt.mask.view(np.uint8), binarize(pair.pred).view(np.uint8)
        hit = gt & pred
        kept = cv2.erode(gt | pred, _CROSS, iterations=self.relax)
        too_much = self._regrow(pred ^ hit, kept, gt)
        too_little = self._regrow(gt ^ hit, kept, pred) | (pair.gt.skeleton.view(np.uint8) & ~pred)
        return self._clicks(too_much, hit | too_little) + self._clicks(too_little, 1 - (hit | too_much | too_little))

    def compute(self) -> dict[str, float]:
        """Return ``{"hce": ...}``, >= 0, the mean over all images; nan without images."""
        return {"hce": float(self.mean())}

    def _regrow(self, wrong: np.ndarray, kept: np.ndarray, barrier: np.ndarray) -> np.ndarray:
        """Return the errors that the opening leaves: those connected to its core without crossing the barrier."""
        grown, free = wrong & kept, barrier ^ 1
        for _ in range(self.relax if grown.any() else 0):
            grown = cv2.dilate(grown, _CROSS) & free
        return grown & wrong

    def _clicks(self, region: np.ndarray, beside: np.ndarray) -> int:
        """Return the clicks of a region: the corners of its border along ``beside``, and one for each separate part."""
        contours, hierarchy = cv2.findContours(region, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
        if not contours:
            return 0
        points = np.concatenate(contours)
        contour = np.repeat(np.arange(len(contours)), [len(line) for line in contours])
        place = points[:, 0, 1].astype(np.int64) * region.shape[1] + points[:, 0, 0]
        # a contour passes thin parts twice; only the first time counts
        order = np.arange(place.size)
        first = np.empty(region.size, np.int64)
        first[place[::-1]] = order[::-1]
        drawn = (cv2.dilate(beside, _CROSS).ravel()[place] > 0) & (first[place] == order)

        part: list[int] = []  # the outer contour of each contour's region; for a hole that is its parent
        for index, parent in enumerate(hierarchy[0, :, 3].tolist()):
            part.append(parent if parent >= 0 and part[parent] == parent else index)
        apart = len(set(part)) - len({part[index] for index in set(contour[drawn].tolist())})
        return apart + self._corners(points, contour, drawn)

    def _corners(self, points: np.ndarray, contour: np.ndarray, drawn: np.ndarray) -> int:
        """Return the number of corners of all stretches of the contours that are drawn."""
        joined = np.r_[False, drawn[1:] & drawn[:-1] & (contour[1:] == contour[:-1])]
        starts = np.flatnonzero(drawn & ~joined)
        ends = np.flatnonzero(drawn & ~np.r_[joined[1:], False]) + 1
        if not starts.size:
            return 0
        stretches = [points[start:end] for start, end in zip(starts, ends, strict=True)]
        # A contour is closed: its last and first stretch are one if they touch. Like the published code, this appends
        # the first stretch in reverse order.
        of = contour[starts]
        heads, tails = np.flatnonzero(np.r_[True, of[1:] != of[:-1]]), np.flatnonzero(np.r_[of[1:] != of[:-1], True])
        for head, tail in zip(heads, tails, strict=True):
            if tail > head and np.abs(points[starts[head]] - points[ends[tail] - 1]).max() == 1:
                stretches[tail] = np.concatenate((stretches[tail], stretches[head][::-1]))
                stretches[head] = points[:0]
        return sum(
            len(cv2.approxPolyDP(stretch, self.epsilon, False)) if len(stretch) > 2 else len(stretch)
            for stretch in stretches
        )
