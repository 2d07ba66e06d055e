"""Runs over photographs in parts: what ``dis-sam cut`` and ``refine`` do on many processes and machines."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dis_sam.batch import METHOD, REMARKS, Options, Outcome, run_tasks
from dis_sam.destination import Destination
from dis_sam.inputs import Request, Task, inputs_of
from dis_sam.model_choice import ModelChoice
from IS_Net.errors import DatasetError
from IS_Net.listing import Entry, read_listing
from IS_Net.manifest import fingerprint
from IS_Net.shards import DONE, FAILED, KEPT, Part, Row

if TYPE_CHECKING:
    from dis_sam.pipeline import DISSAM


@dataclass
class LazyModel:
    """A model that is loaded when it is first used; when this is pickled, the model stays behind.

    Attributes:
        choice: Which model.
    """

    choice: ModelChoice
    _model: DISSAM | None = field(default=None, compare=False, repr=False)

    def __call__(self) -> DISSAM:
        """Return the model."""
        if self._model is None:
            self._model = self.choice.load()
        return self._model

    def __getstate__(self) -> dict[str, Any]:
        return {"choice": self.choice, "_model": None}


@dataclass(frozen=True)
class PhotoWork:
    """Photographs in files; see :class:`IS_Net.shards.Work`.

    Attributes:
        tasks: The photographs and their objects.
        destination: Writes to a folder.
        model: The model.
        options: How to segment and write.
        overwrite: Whether to replace files that this project did not write.
        workers: See :func:`dis_sam.batch.run`.
        left_out: Messages about photographs of which nothing can be made.
    """

    tasks: Sequence[Task]
    destination: Destination
    model: LazyModel
    options: Options
    overwrite: bool = False
    workers: int | None = None
    left_out: Sequence[str] = ()
    what = "a run over photographs"

    @property
    def out(self) -> Path:
        """The folder of outputs and rows."""
        return self.destination.out

    def items(self) -> Sequence[Task]:
        """Return the photographs."""
        return self.tasks

    def without_items(self) -> PhotoWork:
        """Return the same without the photographs, for another process that is given some of them."""
        return replace(self, tasks=())

    def run(self, items: Sequence[Task], part: Part) -> None:
        """Segment those photographs whose outputs are missing or out of date.

        A row of an earlier run is believed if photograph, masks and outputs have the sizes and times that it records;
        otherwise the files are read, and their content decides.
        """
        todo = []
        for task in items:
            if self._is_current(task, part.rows.get(task.name)):
                part.keep()
            else:
                todo.append(task)
        self.destination.check_foreign(todo, self.overwrite)

        def report(outcome: Outcome) -> None:
            status = FAILED if outcome.failed else DONE if outcome.written else KEPT
            names = [path.relative_to(self.out).as_posix() for path in (*outcome.written, *outcome.kept)]
            values = {"outputs": {name: fingerprint(self.out / name) for name in sorted(names)}}
            remarks = outcome.remarks
            if not outcome.written:  # the outputs were up to date, although the row was not believed
                earlier = part.rows.get(outcome.task.name) or {}
                remarks = {name: earlier[name] for name in REMARKS if name in earlier}
            values |= remarks
            error = "\n".join(outcome.failed) or None
            part.add(outcome.task.name, status, outcome.seconds, error, **values, key=self._key(outcome.task))

        summary = run_tasks(todo, self.destination, self.model.choice, self.options, self.workers, self.model, report)
        part.errors += [message for message in summary.failed if message.startswith("stopped")]  # at a full disk

    def finish(self) -> None:
        """There is nothing beside the rows."""

    def _key(self, task: Task) -> str | None:
        """Return a text that changes when anything seems to have changed that the outputs are made from."""
        try:
            files = [fingerprint(path) for path in inputs_of([task])]
        except OSError:
            return None
        uses_stage_1 = any(request.uses_stage_1 for request in task.requests)
        return digest(files, task.requests, self.model.choice.key(uses_stage_1), self.options)

    def _is_current(self, task: Task, row: Row | None) -> bool:
        if row is None or row["status"] not in (DONE, KEPT) or not row.get("key") or row["key"] != self._key(task):
            return False
        wanted = {path.relative_to(self.out).as_posix() for path in self.destination.paths(task)}
        try:
            return wanted == row["outputs"].keys() and all(
                fingerprint(self.out / name) == found for name, found in row["outputs"].items()
            )
        except OSError:
            return False


def digest(files: Sequence[str], requests: Sequence[Request], model: list[list[str]], options: Options) -> str:
    """Return a text that changes when files, prompts, the model or options do.

    Args:
        files: What identifies the content of the files.
        requests: The objects, unless the files say which they are.
        model: See :meth:`dis_sam.model_choice.ModelChoice.key`.
        options: How to segment and write.
    """
    prompts = [[r.name, r.box, r.points, r.labels] for r in requests]
    how = [METHOD, options.kinds, options.bits, options.threshold, options.crop, options.keep_better, options.detail]
    return hashlib.sha256(json.dumps([files, prompts, model, how]).encode()).hexdigest()[:32]


def plan_listing(path: Path, refine: bool) -> list[Task]:
    """Say which objects of which photographs are requested by a list of pictures.

    Args:
        path: See :func:`IS_Net.listing.read_listing`.
        refine: Whether the masks of the list are refined; otherwise they are not used.

    Returns:
        A task for each photograph. A row without box, points and mask requests the most salient object.

    Raises:
        DatasetError: If the list is faulty, or says two things about a photograph.
        PromptError: If a box or points are not such.
    """
    rows: dict[str, list[Entry]] = defaultdict(list)
    for entry in read_listing(path, ["mask"] if refine else []):
        rows[entry.name].append(entry)
    return [Task(name, entries[0].image, tuple(_requests(entries, refine))) for name, entries in rows.items()]


def _requests(entries: Sequence[Entry], refine: bool) -> list[Request]:
    requests: dict[str, Request] = {}
    for entry in entries:
        if entry.image != entries[0].image:
            raise DatasetError(f"{entry.where}: the name {entry.name!r} is that of another image in {entries[0].where}")
    for entry in entries:
        if len(entries) > 1 and entry.object is None:
            raise DatasetError(
                f"{entry.where}: 'object': {entry.name!r} has {len(entries)} rows; name the object of each, because "
                "the outputs are named after them"
            )
        name = entry.name if len(entries) == 1 else f"{entry.name}_{entry.object}"
        if name in requests:
            raise DatasetError(f"{entry.where}: the object {entry.object!r} of {entry.name!r} is given twice")
        requests[name] = request_of(name, {**entry.prompt, "object": entry.object}, entry.mask, entry.where, refine)
    return list(requests.values())


def request_of(name: str, record: dict[str, Any], mask: Path | bytes | None, where: str, refine: bool) -> Request:
    """Return the request for an object.

    Args:
        name: The name of its outputs.
        record: Holds ``box``, ``points`` and ``labels``; see :func:`sam.prompts.prompt_from_record`.
        mask: Its coarse mask, which is used with ``refine``.
        where: How messages refer to it.
        refine: Whether to refine the mask; points are not used then.

    Raises:
        PromptError: If the record is faulty.
    """
    if not any(record.get(key) is not None for key in ("box", "points", "labels", "object")):
        return Request(name, mask=mask if refine else None)
    from sam.prompts import prompt_from_record  # imports PyTorch

    prompt = prompt_from_record(name, record, where)
    if refine:
        return Request(name, prompt.box, mask=mask)
    return Request(name, prompt.box, prompt.points, prompt.labels)
