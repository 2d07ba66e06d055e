"""Runs of stage 1 in parts: what ``dis-sam masks`` does on many processes and machines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from IS_Net.lock import lock_folder
from IS_Net.manifest import Manifest
from IS_Net.shards import DONE, FAILED, KEPT, PATIENCE, Part
from sam.backends.base import Select, StageOnePredictor
from sam.mask_items import Item, require_boxes
from sam.mask_run import MaskRun, Outcome, Summary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskWork:
    """The masks of a folder, or an enriched split, in parts; see :class:`IS_Net.shards.Work`.

    Attributes:
        images: The images with their ground truths or prompts; see :func:`sam.mask_items.find_items` and
            :func:`sam.mask_items.find_listed`.
        mask_dir: The folder of masks, manifest and rows.
        load: Loads the model; it is called once in each process, and pickled for others.
        select: See :func:`sam.mask_run.generate_masks`.
        workers: See :func:`sam.mask_run.generate_masks`.
        batch: See :func:`sam.mask_run.generate_masks`.
        overwrite: See :func:`sam.mask_run.generate_masks`.
        enriched: The enriched split that the masks belong to, or None.
        source: The folders of images and ground truths that the enriched split is made from.
    """

    images: Sequence[Item]
    mask_dir: Path
    load: Callable[[], StageOnePredictor]
    select: Select = "score"
    workers: int | None = None
    batch: int | None = None
    overwrite: bool = False
    enriched: Path | None = None
    source: tuple[Path, Path] | None = None
    what = "a mask run"
    left_out = ()

    @property
    def out(self) -> Path:
        """The folder of masks and rows."""
        return self.mask_dir

    def items(self) -> Sequence[Item]:
        """Return the images."""
        return self.images

    def without_items(self) -> MaskWork:
        """Return the same without the images, for another process that is given some of them."""
        return replace(self, images=())

    def run(self, items: Sequence[Item], part: Part) -> None:
        """Make the masks of these images that are missing; each image that is not as its row says gets a new row."""
        run = part.state.get("run")
        if run is None:
            run = MaskRun(
                self.mask_dir, self.load(), self.select, self.overwrite, self.batch, self.enriched, self.source
            )
            if run.predictor.box_only:
                require_boxes(items)
            with lock_folder(self.mask_dir, "a mask run (start)", wait=PATIENCE):
                run.prepare(items, part.folder)
            part.state["run"] = run

        def report(outcome: Outcome) -> None:
            name, row = outcome.item.stem, part.rows.get(outcome.item.stem)
            if outcome.error is not None:
                part.add(name, FAILED, outcome.seconds, outcome.error, outputs=[])
            elif outcome.written or row is None or row["status"] == FAILED:
                status = DONE if outcome.written else KEPT
                part.add(name, status, outcome.seconds, outputs=[f"{mask}.png" for mask in outcome.masks])
            else:
                part.keep()

        summary = run.make_all(items, self.workers, report)
        for line in str(replace(summary, failed={})).splitlines()[1:]:  # those that failed have rows
            logger.info("%s: %s", self.mask_dir, line)

    def make_all(self, predictor: StageOnePredictor) -> Summary:
        """Make all masks in this process; see :class:`sam.mask_run.MaskRun`."""
        if predictor.box_only:
            require_boxes(self.images)
        run = MaskRun(self.mask_dir, predictor, self.select, self.overwrite, self.batch, self.enriched, self.source)
        return run.make(self.images, self.workers)

    def finish(self) -> None:
        """Rewrite the manifest, sorted and without what is out of date."""
        Manifest(self.mask_dir)
