"""The samples that batches are composed of, as bytes: in memory of a GPU, or as the data set gives them."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from IS_Net.preprocess import IMAGE_CHANNELS, Size, Window, box_from_mask

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
_SHARE = 0.5  # of a GPU's free memory that sources may take


class Sources:
    """The samples of a data set, all of one size.

    Args:
        dataset: Gives the planes of each sample, (C, H, W) uint8: RGB first, ground truth last if there is one.
        device: Where planes are wanted. All samples are copied to a GPU once; a CPU reads them when they are needed.

    Attributes:
        size: (height, width) of the samples.
    """

    def __init__(self, dataset: Dataset, device: torch.device = CPU) -> None:
        self.dataset, self.device = dataset, device
        self.size: Size = tuple(dataset[0].shape[-2:])
        self._stored: Tensor | None = None
        self._boxes: dict[int, tuple[int, int, int, int] | None] = {}
        if device.type != "cpu":
            self._store()

    def __len__(self) -> int:
        return len(self.dataset)

    def _store(self) -> None:
        first = self.dataset[0]
        self._stored = torch.empty((len(self), *first.shape), dtype=torch.uint8, device=self.device)
        for index in range(len(self)):
            planes = np.array(self.dataset[index])  # the cache is read-only, tensors are not
            self._stored[index].copy_(torch.from_numpy(planes))
            self._boxes[index] = box_from_mask(planes[-1]) if len(planes) > IMAGE_CHANNELS else None
        logger.info("sources: %d samples take %.2f GB of %s", len(self), self._stored.nbytes / 1e9, self.device)

    def planes(self, index: int, window: Window | None = None) -> Tensor:
        """Return a sample or a window of it: (1, C, h, w) uint8 on the device, not to be modified."""
        area = np.s_[:, :]
        if window is not None:
            area = np.s_[window.top : window.top + window.height, window.left : window.left + window.width]
        if self._stored is not None:
            return self._stored[index : index + 1][(..., *area)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor is it written to
            return torch.from_numpy(self.dataset[index][(..., *area)])[None]

    def box(self, index: int) -> tuple[int, int, int, int] | None:
        """Return the tight box of a sample's ground truth, xyxy with both ends included; None if it is empty."""
        if index not in self._boxes:
            self._boxes[index] = box_from_mask(self.dataset[index][-1])
        return self._boxes[index]


def fits(datasets: list[Dataset], device: torch.device) -> bool:
    """Return whether the samples of data sets take at most half of a GPU's free memory; log it if they do not."""
    needed = sum(len(dataset) * int(np.prod(dataset[0].shape)) for dataset in datasets)
    free, _ = torch.cuda.mem_get_info(device)
    if needed <= _SHARE * free:
        return True
    logger.warning(
        "sources: %.1f GB are more than half of the %.1f GB that are free on %s; batches are composed on the CPU, "
        "which is slower; reduce cache_size or the data sets to compose them on the GPU",
        *(needed / 1e9, free / 1e9, device),
    )
    return False
