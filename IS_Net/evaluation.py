"""The library behind ``dis-sam evaluate``: predict, and score all maps of all data sets."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from IS_Net.errors import BoxError, EvaluationError, ImageError, ScoringError
from IS_Net.evaluation_data import OWN, PERFECT, DataSet, Request, gather, problems_text
from IS_Net.images import binarize, read_image, read_mask, write_map
from IS_Net.machine import available_cores
from IS_Net.manifest import read_manifest, recorded_box
from IS_Net.masks import keep_levels
from IS_Net.paths import starter_weights
from IS_Net.predictor import DISPredictor
from IS_Net.report import Prompt, Scores
from IS_Net.robustness import change_prompt
from IS_Net.scoring import Job, Outcome, Scorer

THUMBNAIL = 480
"""Longer side in pixels of the predicted maps that are kept for the report."""


def network_names(files: Sequence[Path]) -> list[str]:
    """Return names for checkpoints: their stems; where these are equal, with the name of the folder in front.

    Raises:
        EvaluationError: If two names are still equal.
    """
    stems = [path.stem for path in files]
    names = [
        stem if stems.count(stem) == 1 else f"{path.resolve().parent.name}_{stem}"
        for path, stem in zip(files, stems, strict=True)
    ]
    if len(set(names)) < len(names):
        raise EvaluationError(f"--weights: the names of the files must differ, found {', '.join(names)}; rename one")
    return names


def load_networks(request: Request) -> dict[str, DISPredictor]:
    """Load the networks of a request by their names; none if it does not predict.

    Raises:
        EvaluationError: If two checkpoints have the same name.
        CheckpointError: If a checkpoint is missing, damaged, or belongs to another network.
        DeviceError: If the device, the precision or the runtime is not available.
    """
    if request.weights is None:
        return {}
    files = list(request.weights) or [starter_weights()]
    return {
        name: DISPredictor.from_checkpoint(file, request.device, request.precision, runtime=request.runtime)
        for name, file in zip(network_names(files), files, strict=True)
    }


def evaluate(request: Request, thumbnails: Path | None = None) -> tuple[list[DataSet], list[Scores]]:
    """Find, predict and score all maps of a request.

    Args:
        request: What to evaluate.
        thumbnails: Folder for reduced copies of predicted maps, which :func:`IS_Net.evaluation_outputs.contents` shows;
            None writes none.

    Returns:
        The data sets, and the scores of each method on each of them.

    Raises:
        UserError: If files, weights or the device cannot be used, or scoring fails.
    """
    networks = load_networks(request)
    data_sets = gather(request, {name: predictor.in_ch for name, predictor in networks.items()})
    workers = available_cores() if request.workers is None else request.workers
    with Scorer(request.metrics, workers, None if request.cache else "") as scorer:
        results = score(data_sets, scorer, request.metrics, networks, thumbnails)
    return data_sets, results


def empty_scores(data_sets: Sequence[DataSet], metrics: str) -> dict[tuple[str, str], Scores]:
    """Return scores without images, by the names of data set and method."""
    results: dict[tuple[str, str], Scores] = {}
    for data_set in data_sets:
        predictions = {prediction.method: prediction for prediction in data_set.predictions}
        for method in data_set.methods:
            made = predictions.get(method)
            baseline = results.get((data_set.name, made.baseline)) if made else None
            scores = Scores(data_set.name, method, metrics, baseline)
            if made and made.change:
                scores.prompt = Prompt(made.network, made.kind, made.change)
            results[data_set.name, method] = scores
    return results


@dataclass
class Measured:
    """The measures of all maps of a ground truth."""

    data_set: DataSet
    name: str
    outcome: Outcome
    seconds: dict[str, float] = field(default_factory=dict)
    """By method: the time of the prediction."""


def score(
    data_sets: Sequence[DataSet],
    scorer: Scorer,
    metrics: str,
    networks: Mapping[str, DISPredictor] | None = None,
    thumbnails: Path | None = None,
) -> list[Scores]:
    """Score all maps of all data sets. Predictions are made in this process while the scorer's workers score.

    Args:
        data_sets: The data sets with their methods.
        scorer: Measures the maps.
        metrics: The metrics of the scorer.
        networks: The networks of the data sets' predictions, by name.
        thumbnails: Folder for reduced copies of the predicted maps; None writes none.

    Returns:
        The scores of each method on each data set.

    Raises:
        ScoringError: If files cannot be read (all are listed), or a worker process died.
    """
    results = empty_scores(data_sets, metrics)
    items = [(data_set, name) for data_set in data_sets for name in data_set.gts]
    problems: list[str] = []
    for found in measure(items, scorer, networks, thumbnails):
        problems += found.outcome.problems
        for method, duration in found.seconds.items():
            results[found.data_set.name, method].seconds[found.name] = duration
        for method, measured in found.outcome.measured.items():
            results[found.data_set.name, method].add(found.name, measured)
    if problems:
        raise ScoringError(problems_text(problems))
    return list(results.values())


def measure(
    items: Sequence[tuple[DataSet, str]],
    scorer: Scorer,
    networks: Mapping[str, DISPredictor] | None = None,
    thumbnails: Path | None = None,
) -> Iterator[Measured]:
    """Predict and measure the maps of some ground truths.

    Args:
        items: Data sets and names of ground truths.
        scorer: See :func:`score`.
        networks: See :func:`score`.
        thumbnails: See :func:`score`.

    Yields:
        The measures of each, in order.

    Raises:
        ScoringError: If a worker process died.
    """
    predicted: deque[tuple[dict[str, float], list[str]]] = deque()

    def jobs() -> Iterator[Job]:
        predict: _Refiner | None = None
        for data_set, name in items:
            if predict is None or predict.data_set is not data_set:
                predict = _Refiner(data_set, networks or {}, thumbnails)
            maps: dict[str, Path | np.ndarray] = {m: files[name] for m, files in data_set.maps.items()}
            seconds, problems = {}, []
            if data_set.predictions:
                try:
                    refined, seconds = predict(name)
                except ImageError as error:
                    problems.append(str(error))
                except BoxError as error:
                    problems.append(f"{data_set.images[name]}: {error}")
                else:
                    maps |= refined
            predicted.append((seconds, problems))
            yield Job(name, data_set.gts[name], maps)

    outcomes = tqdm(scorer.measure(jobs()), "score", len(items), unit="image")
    for (data_set, name), outcome in zip(items, outcomes, strict=True):
        seconds, problems = predicted.popleft()
        yield Measured(data_set, name, outcome._replace(problems=problems + outcome.problems), seconds)


def boxes_of_masks(data_set: DataSet) -> dict[str, dict[str, Any]]:
    """Return the boxes that the coarse masks were made from, which the predictions get: by kind, and by name.

    They are in the manifests beside the masks, or in the list of the data set. A mask that was replaced has none.
    """
    kinds = {prediction.kind for prediction in data_set.predictions if prediction.kind and not prediction.change}
    folders = {kind: data_set.kinds[kind] for kind in kinds if kind != PERFECT}
    found = {kind: _boxes_in(folder) for kind, folder in folders.items() if folder.is_dir()}
    return {OWN: data_set.boxes, **found}


def _boxes_in(folder: Path) -> dict[str, tuple[float, ...] | None]:
    files = {name: (folder / f"{name}.png", entry) for name, entry in read_manifest(folder).items()}
    return {name: recorded_box(path, entry) for name, (path, entry) in files.items() if path.is_file()}


class _Refiner:
    """Makes the predictions of a data set, image by image."""

    def __init__(self, data_set: DataSet, networks: Mapping[str, DISPredictor], thumbnails: Path | None) -> None:
        self.data_set, self.networks, self.thumbnails = data_set, networks, thumbnails
        self.kinds = list(dict.fromkeys(p.kind for p in data_set.predictions if p.kind))
        self.boxes = boxes_of_masks(data_set)

    def __call__(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Return the coarse masks and the maps of an image, (H, W) uint8 by method, and the maps' times in seconds.

        Raises:
            ImageError: If a file cannot be read.
            BoxError: If the box of a coarse mask does not fit the image.
        """
        image = read_image(self.data_set.images[name])
        masks = {kind: self._mask(kind, name) for kind in self.kinds}
        maps, seconds = dict(masks), {}
        for prediction in self.data_set.predictions:
            method, network, kind, change, seed = prediction
            mask, box = masks.get(kind), self.boxes.get(kind, {}).get(name)
            if change:
                gt = read_mask(self.data_set.gts[name])
                mask, box = change_prompt(change, name, image, gt, mask, seed)
            started = time.perf_counter()
            alpha = self.networks[network].predict(image, None if mask is None else keep_levels(mask), box)
            seconds[method] = time.perf_counter() - started
            maps[method] = np.rint(alpha * 255).astype(np.uint8)
            if self.thumbnails:
                self._keep(method, name, maps[method])
        return maps, seconds

    def _mask(self, kind: str, name: str) -> np.ndarray:
        mask = read_mask(self.data_set.maps[kind][name])
        return binarize(mask) * np.uint8(255) if kind == PERFECT else mask

    def _keep(self, method: str, name: str, alpha: np.ndarray) -> None:
        """Write a reduced copy of a map for the report."""
        files = self.data_set.thumbnails.setdefault(method, {})
        files[name] = thumbnail_file(self.thumbnails, self.data_set, method, name)
        scale = min(1.0, THUMBNAIL / max(alpha.shape))
        size = max(1, round(alpha.shape[1] * scale)), max(1, round(alpha.shape[0] * scale))
        write_map(files[name], cv2.resize(alpha, size, interpolation=cv2.INTER_AREA))


def thumbnail_file(folder: Path, data_set: DataSet, method: str, name: str) -> Path:
    """Return the file of a reduced copy of a map."""
    number = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return folder / f"{data_set.name}-{data_set.methods.index(method)}-{number}.png"
