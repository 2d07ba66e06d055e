"""An evaluation in parts: what ``dis-sam evaluate`` does on many processes and machines, and resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from IS_Net.errors import ScoringError
from IS_Net.evaluation import boxes_of_masks, empty_scores, load_networks, measure, thumbnail_file
from IS_Net.evaluation_data import DataSet, Request, gather, problems_text
from IS_Net.files import content_hash
from IS_Net.machine import cores_per_process
from IS_Net.manifest import fingerprint
from IS_Net.paths import starter_weights
from IS_Net.predictor import DISPredictor
from IS_Net.report import Scores
from IS_Net.scoring import CACHE_VERSION, Scorer
from IS_Net.shards import DONE, FAILED, Part, Row


@dataclass(frozen=True)
class EvaluationWork:
    """An evaluation in parts; see :class:`IS_Net.shards.Work`. An item is the names of data set and ground truth.

    Attributes:
        request: What to evaluate.
        out: The folder of the rows, which hold the measures of each ground truth's maps.
        thumbnails: Whether to keep reduced copies of predicted maps there.
        pictures: The items.
    """

    request: Request
    out: Path
    thumbnails: bool = False
    pictures: Sequence[tuple[str, str]] = ()
    what = "an evaluation"
    left_out = ()

    @classmethod
    def plan(cls, request: Request, out: Path, thumbnails: bool = False) -> EvaluationWork:
        """Find the pictures.

        Raises:
            UserError: If files or weights cannot be used.
        """
        work = cls(request, out, thumbnails)
        pictures = tuple((data_set.name, name) for data_set in work.data_sets for name in data_set.gts)
        object.__setattr__(work, "pictures", pictures)  # not a copy, which would not have what is loaded
        return work

    @cached_property
    def networks(self) -> dict[str, DISPredictor]:
        """The networks that predict, by name."""
        return load_networks(self.request)

    @cached_property
    def data_sets(self) -> list[DataSet]:
        """The data sets with the files of all methods."""
        return gather(self.request, {name: predictor.in_ch for name, predictor in self.networks.items()})

    @cached_property
    def _by_name(self) -> dict[str, DataSet]:
        return {data_set.name: data_set for data_set in self.data_sets}

    @cached_property
    def _boxes(self) -> dict[str, dict[str, dict[str, Any]]]:
        return {data_set.name: boxes_of_masks(data_set) for data_set in self.data_sets}

    @cached_property
    def _weights(self) -> list[str]:
        if self.request.weights is None:
            return []
        return [content_hash(path) for path in self.request.weights or [starter_weights()]]

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("request", "out", "thumbnails", "pictures")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def items(self) -> Sequence[tuple[str, str]]:
        """Return the names of data set and ground truth of all pictures."""
        return self.pictures

    def without_items(self) -> EvaluationWork:
        """Return the same without the pictures, for another process that is given some of them."""
        return replace(self, pictures=())

    @property
    def _thumbnails(self) -> Path | None:
        return self.out / "thumbnails" if self.thumbnails else None

    def run(self, items: Sequence[tuple[str, str]], part: Part) -> None:
        """Measure those pictures that no row holds."""
        todo = []
        for item in items:
            if self._is_current(item, part.rows.get(_row_name(*item))):
                part.keep()
            else:
                todo.append((self._by_name[item[0]], item[1]))
        if not todo:
            return
        scorer = part.state.get("scorer")
        if scorer is None:
            workers = cores_per_process() if self.request.workers is None else self.request.workers
            scorer = Scorer(self.request.metrics, workers, None if self.request.cache else "")
            part.state["scorer"] = part.resources.enter_context(scorer)
        for found in measure(todo, scorer, self.networks, self._thumbnails):
            item = found.data_set.name, found.name
            error = "\n".join(dict.fromkeys(found.outcome.problems)) or None
            values: dict[str, Any] = {"outputs": []}
            if error is None:
                values |= {
                    "key": self._key(item),
                    "predict_seconds": found.seconds,
                    "measured": {m: _to_json(value) for m, value in found.outcome.measured.items()},
                }
            status = FAILED if error else DONE
            part.add(_row_name(*item), status, sum(found.seconds.values()), error, **values)

    def finish(self) -> None:
        """There is nothing beside the rows."""

    def results(self, rows: Mapping[str, Row]) -> list[Scores]:
        """Return the scores of all methods from the rows of all pictures.

        Raises:
            ScoringError: If pictures could not be measured, each of which is named.
        """
        results = empty_scores(self.data_sets, self.request.metrics)
        problems: list[str] = []
        for data_set, name in self.pictures:
            row = rows[_row_name(data_set, name)]
            problems += [] if row["error"] is None else row["error"].splitlines()
            for method, duration in row.get("predict_seconds", {}).items():
                results[data_set, method].seconds[name] = duration
            for method, measured in row.get("measured", {}).items():
                results[data_set, method].add(name, _from_json(measured))
            if self._thumbnails is not None:
                found = self._by_name[data_set]
                for prediction in found.predictions:
                    file = thumbnail_file(self._thumbnails, found, prediction.method, name)
                    found.thumbnails.setdefault(prediction.method, {})[name] = file
        if problems:
            raise ScoringError(problems_text(problems))
        return list(results.values())

    def _key(self, item: tuple[str, str]) -> str | None:
        """Return a text that changes when anything seems to have changed that a picture's measures are made from."""
        data_set, name = self._by_name[item[0]], item[1]
        files = [data_set.gts[name], *(maps[name] for maps in data_set.maps.values())]
        files += [data_set.images[name]] if data_set.predictions else []
        try:
            found = [fingerprint(path) for path in files]
        except OSError:
            return None
        request = self.request
        boxes = {kind: found.get(name) for kind, found in self._boxes[data_set.name].items()}
        how = [request.metrics, data_set.methods, self._weights, request.precision, boxes]
        how += [request.seed] if request.jitter else []
        return hashlib.sha256(json.dumps([CACHE_VERSION, found, how], sort_keys=True).encode()).hexdigest()[:32]

    def _is_current(self, item: tuple[str, str], row: Row | None) -> bool:
        if row is None or row["status"] == FAILED or not row.get("key") or row["key"] != self._key(item):
            return False
        data_set = self._by_name[item[0]]
        return self._thumbnails is None or all(
            thumbnail_file(self._thumbnails, data_set, prediction.method, item[1]).is_file()
            for prediction in data_set.predictions
        )


def _row_name(data_set: str, name: str) -> str:
    return f"{data_set}/{name}"


def _to_json(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measures of a map as JSON values; the numbers are written with all their digits."""
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in measured.items()}


def _from_json(measured: Mapping[str, Any]) -> dict[str, Any]:
    return {key: np.array(value) if isinstance(value, list) else value for key, value in measured.items()}
