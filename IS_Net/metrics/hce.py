"""Human correction effort."""

from __future__ import annotations

import cv2
import numpy as np

from IS_Net.images import binarize
from IS_Net.metrics.pair import Metric, Pair

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


class HCE(Metric):
    """Human correction effort (Qin et al., ECCV 2022): about how many clicks it takes to mend a mask. Lower is better.

    Errors that an opening by ``relax`` pixels removes are forgiven, but where they break the ground truth's skeleton.
    Of what remains, false positives and false negatives alike, each region that lies apart costs one click, and
    borders that must be drawn cost the corners of a polygon that stays within ``epsilon`` pixels of them.

    - Thresholds: map and ground truth are binarized at > 128, at the ground truth's own size.
    - Stretching: none.
    - Empty maps: what it costs to add all of the object, at least 1; 0 where the ground truth is empty too.
    - Empty ground truths: what it costs to remove all that was found, and is not forgiven.

    A perfect map costs 0.

    The clicks depend on the order in which OpenCV lists a contour's points, and that changed with its version 4.13:
    older ones give other numbers for about a third of all images, mostly by a few clicks, here as in the published
    code. Figures to be compared should come from one side of that version.

    Args:
        relax: How many pixels of error are forgiven.
        epsilon: How far a polygon may run beside the border.
    """

    def __init__(self, relax: int = 5, epsilon: float = 2.0) -> None:
        super().__init__()
        self.relax = relax
        self.epsilon = epsilon

    def measure(self, pair: Pair) -> int:
        """Return the effort for one image: a whole number, 0 or more."""
        gt, pred = pair.gt.mask.view(np.uint8), binarize(pair.pred).view(np.uint8)
        hit = gt & pred
        kept = cv2.erode(gt | pred, _CROSS, iterations=self.relax)
        too_much = self._regrow(pred ^ hit, kept, gt)
        too_little = self._regrow(gt ^ hit, kept, pred) | (pair.gt.skeleton.view(np.uint8) & ~pred)
        return self._clicks(too_much, hit | too_little) + self._clicks(too_little, 1 - (hit | too_much | too_little))

    def compute(self) -> dict[str, float]:
        """Return ``{"hce": ...}``, 0 or more, mean over all images; nan where there was none."""
        return {"hce": float(self.mean())}

    def _regrow(self, wrong: np.ndarray, kept: np.ndarray, barrier: np.ndarray) -> np.ndarray:
        """Return the errors that are left of an opening: grown back from where they were kept, within the barrier."""
        grown, free = wrong & kept, barrier ^ 1
        for _ in range(self.relax if grown.any() else 0):
            grown = cv2.dilate(grown, _CROSS) & free
        return grown & wrong

    def _clicks(self, region: np.ndarray, beside: np.ndarray) -> int:
        """Return the clicks that a region costs: corners of its border along ``beside``, and parts that lie apart."""
        contours, hierarchy = cv2.findContours(region, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
        if not contours:
            return 0
        points = np.concatenate(contours)
        contour = np.repeat(np.arange(len(contours)), [len(line) for line in contours])
        place = points[:, 0, 1].astype(np.int64) * region.shape[1] + points[:, 0, 0]
        # thin parts are passed twice, there and back: only the first time counts
        order = np.arange(place.size)
        first = np.empty(region.size, np.int64)
        first[place[::-1]] = order[::-1]
        drawn = (cv2.dilate(beside, _CROSS).ravel()[place] > 0) & (first[place] == order)

        part: list[int] = []  # each contour's region, named by its outer contour: a hole's is its parent
        for index, parent in enumerate(hierarchy[0, :, 3].tolist()):
            part.append(parent if parent >= 0 and part[parent] == parent else index)
        apart = len(set(part)) - len({part[index] for index in set(contour[drawn].tolist())})
        return apart + self._corners(points, contour, drawn)

    def _corners(self, points: np.ndarray, contour: np.ndarray, drawn: np.ndarray) -> int:
        """Return the corners of all stretches of the contours that are drawn."""
        joined = np.r_[False, drawn[1:] & drawn[:-1] & (contour[1:] == contour[:-1])]
        starts = np.flatnonzero(drawn & ~joined)
        ends = np.flatnonzero(drawn & ~np.r_[joined[1:], False]) + 1
        if not starts.size:
            return 0
        stretches = [points[start:end] for start, end in zip(starts, ends, strict=True)]
        # A contour is closed: where its last stretch ends beside the beginning of its first, they are one. (As in the
        # published code, the first is appended back to front.)
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
