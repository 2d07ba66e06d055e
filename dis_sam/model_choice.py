"""Which model a run uses: its files are found at the start, and it is loaded only when there is work for it."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dis_sam.inputs import Task
from IS_Net.errors import CheckpointError, PromptError
from IS_Net.files import sha256
from IS_Net.manifest import fingerprint
from IS_Net.paths import starter_weights
from sam.backends import BOX, NEEDS_SAM, available_model, find_checkpoint, split_model, weight_files

if TYPE_CHECKING:
    from dis_sam.pipeline import DISSAM

_METHODS = {"sam2": "proposals", "onnx": "proposals"}
"""Part of the keys of models of stage 1. Change it when the same prompts give other masks than before."""


@dataclass(frozen=True)
class ModelChoice:
    """Which model is used. It is loaded only when there is work for it.

    Attributes:
        weights: The checkpoint of stage 2.
        sam: The model of stage 1, a name in :data:`sam.backends.BACKENDS`, or ``NAME=PATH``.
        device: See :func:`dis_sam.pipeline.load`.
        precision: See :func:`dis_sam.pipeline.load`.
        runtime: See :func:`dis_sam.pipeline.load`.
    """

    weights: Path
    sam: str = BOX
    device: str = "auto"
    precision: str = "auto"
    runtime: str = "auto"

    def load(self) -> DISSAM:
        """Load the model."""
        # PyTorch takes seconds to import, and a run may have nothing left to do
        with _garbage_collection_paused():  # it would start hundreds of times during the import and find nothing
            from dis_sam.pipeline import load
        return load(self.weights, self.sam, self.device, self.precision, self.runtime)

    @cached_property
    def _stage_2(self) -> list[str]:
        return [sha256(self.weights), self.precision]

    @cached_property
    def _stage_1(self) -> list[str]:
        checkpoint, model = find_checkpoint(self.sam), split_model(self.sam)[0]
        files = [] if checkpoint is None else weight_files(checkpoint)
        key = [model, " ".join(map(fingerprint, files))]  # of gigabytes, which take seconds to hash
        return [*key, *([_METHODS[model]] if model in _METHODS else [])]

    def key(self, uses_stage_1: bool) -> list[list[str]]:
        """Return what identifies the weights and the precision, as JSON values."""
        return [self._stage_2, self._stage_1] if uses_stage_1 else [self._stage_2]


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def choose_model(
    weights: Path | None = None,
    sam: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    runtime: str = "auto",
    *,
    uses_stage_1: bool = True,
    needs_sam: bool = False,
) -> ModelChoice:
    """Choose the model, and check that its files exist.

    Args:
        weights: The checkpoint of stage 2; None takes the starter weights.
        sam: The model of stage 1, or ``auto``; see :func:`dis_sam.pipeline.load`.
        device: See :func:`dis_sam.pipeline.load`.
        precision: See :func:`dis_sam.pipeline.load`.
        runtime: See :func:`dis_sam.pipeline.load`.
        uses_stage_1: Whether there are prompts for stage 1; see :func:`needs_of`.
        needs_sam: Whether there are prompts that only SAM can take.

    Raises:
        CheckpointError: If the weights do not exist.
        MissingFileError: If stage 1 is used, and its checkpoint is not found.
        ValueError: If the model of stage 1 is unknown.
        PromptError: If SAM is needed, and the model of stage 1 is not SAM.
    """
    path = starter_weights() if weights is None else weights
    if not path.is_file():
        raise CheckpointError(f"{path}: the file of the weights does not exist; check the path, or omit --weights")
    if not uses_stage_1:
        return ModelChoice(path, BOX, device, precision, runtime)
    model = available_model() if sam == "auto" else sam
    find_checkpoint(model)
    if needs_sam and model == BOX:
        raise PromptError(NEEDS_SAM)
    return ModelChoice(path, model, device, precision, runtime)


def needs_of(tasks: Iterable[Task]) -> dict[str, bool]:
    """Return what tasks need of the model: the keyword arguments of :func:`choose_model`."""
    requests = [request for task in tasks for request in task.requests if request.uses_stage_1]
    return {"uses_stage_1": bool(requests), "needs_sam": any(request.box is None for request in requests)}
