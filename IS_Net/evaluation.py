"""The library behind ``dis-sam evaluate``: find data sets and maps, predict, score, and render the outputs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from IS_Net import datalist
from IS_Net.errors import DatasetError, EvaluationError, ImageError, ScoringError
from IS_Net.files import content_hash
from IS_Net.images import (
    binarize,
    encode_image,
    image_size,
    is_image,
    list_images,
    read_image,
    read_mask,
    size_mismatch,
    write_map,
)
from IS_Net.listing import Entry, read_listing
from IS_Net.machine import available_cores, cores_per_process
from IS_Net.manifest import fingerprint, read_manifest
from IS_Net.metric_names import ALL
from IS_Net.paths import resolve, starter_weights
from IS_Net.predictor import DISPredictor
from IS_Net.preprocess import MASK_CHANNEL, four_numbers
from IS_Net.report import (
    MEAN,
    Picture,
    Prompt,
    Scores,
    csv_text,
    html_page,
    json_text,
    robustness_page,
    worst_sheet,
)
from IS_Net.robustness import BOX, MASK, Change, change_prompt, list_changes
from IS_Net.scoring import CACHE_VERSION, Job, Outcome, Scorer
from IS_Net.shards import DONE, FAILED, Part, Row

logger = logging.getLogger(__name__)

COARSE = "coarse"
"""The method name of the data sets' own coarse masks, where maps are scored."""

OWN = "mask"
"""The kind of the data sets' own coarse masks."""

PERFECT = "perfect"
"""The kind of coarse mask that is the ground truth itself, binarized."""

THUMBNAIL = 480
"""Longer side in pixels of the predicted maps that are kept for the report."""


@dataclass(frozen=True)
class Request:
    """What to evaluate; the fields are the options of ``dis-sam evaluate``."""

    gt: Sequence[str]
    """Names from datalist.py, splits, folders of splits, or folders of ground truths."""
    pred: Sequence[str] = ()
    """Methods: DIR or NAME=DIR, a folder of maps."""
    weights: Sequence[Path] | None = None
    """Checkpoints that predict; empty: the starter weights; None: do not predict."""
    coarse: Sequence[str] | None = None
    """Kinds of coarse masks; empty: the own ones, or all if weights predict; None: none unless weights need them."""
    images: Sequence[Path] | None = None
    """Folders of the data sets' images, one for each of ``gt``, if not their ``im``."""
    masks: Sequence[Path] | None = None
    """Folders of the data sets' own coarse masks, one for each of ``gt``, if not their ``mask``."""
    limit: int | None = None
    """Highest number of ground truths of each data set."""
    metrics: str = ALL
    """Names of metrics; the format is that of :func:`IS_Net.metric_names.choose`."""
    device: str = "auto"
    precision: str = "auto"
    runtime: str = "auto"
    workers: int | None = None
    """Number of processes that score; 0: this process; None: one for each CPU core."""
    cache: bool = True
    """Whether to cache what depends only on the ground truths."""
    manifest: Path | None = None
    """One more data set: a list of pictures with ground truths; see :func:`find_listed`."""
    jitter: bool = False
    """Whether to predict from prompts that are changed step by step, see :mod:`IS_Net.robustness`."""
    seed: int = 0
    """Seed of the changes."""


class Prediction(NamedTuple):
    """A method that is predicted here."""

    method: str
    network: str
    kind: str | None
    """The kind of its coarse masks; None for a network without a mask channel, and for boxes alone."""
    change: Change | None = None
    """How its prompts are changed; None for the coarse masks as they are, without boxes of the ground truths."""
    seed: int = 0
    """Seed of the change."""

    @property
    def baseline(self) -> str | None:
        """The method that its IoU is compared with: the coarse masks, or the exact prompts of changed ones."""
        if self.change is None:
            return self.kind
        return _label(self.change.reference, self.kind, self.network) if self.change.kind else None


def _label(change: Change, kind: str | None, network: str) -> str:
    """Return the name of the method that predicts from changed prompts."""
    prompt = change.prompt if kind is None else change.prompt.replace(MASK, kind, 1)
    return f"{prompt}, {change.name} -> {network}"


@dataclass
class DataSet:
    """The files of a data set by their stems."""

    name: str
    """Name in tables, and of the folder of its maps if a method has maps of several data sets."""
    folders: tuple[str, ...]
    """Accepted names of the folder of its maps: its own, that of its folder, and that of a link to it."""
    gts: dict[str, Path]
    """Ground truths that are scored."""
    ignored: frozenset[str] = frozenset()
    """Stems of ground truths beyond the limit."""
    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    """Its own coarse masks, which reports show beside maps."""
    kinds: dict[str, Path] = field(default_factory=dict)
    """Folders of its coarse masks, by kind; of a listed data set, the list."""
    boxes: dict[str, Sequence[float]] = field(default_factory=dict)
    """Boxes of the own coarse masks, if the data set is listed; others are in the manifest beside the masks."""
    maps: dict[str, dict[str, Path]] = field(default_factory=dict)
    """By method: the files of its maps or coarse masks."""
    thumbnails: dict[str, dict[str, Path]] = field(default_factory=dict)
    """By predicted method: reduced copies of its maps."""
    predictions: list[Prediction] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    """All methods, in the order of the tables."""
    coarse: set[str] = field(default_factory=set)
    """The methods that are coarse masks."""


# --- find files -----------------------------------------------------------------------------------------------------


def find_splits(text: str) -> list[str]:
    """Return the splits in a folder of splits; the text itself if it is not such a folder."""
    folder = Path(text)
    if text in datalist.named() or not folder.is_dir() or (folder / "gt").is_dir():
        return [text]
    if any(is_image(path) for path in folder.iterdir()):
        return [text]
    return [str(sub) for sub in sorted(folder.iterdir()) if (sub / "gt").is_dir()] or [text]


def find_data_set(
    text: str, images: Path | None = None, masks: Path | None = None, limit: int | None = None
) -> DataSet:
    """Find the files of a data set.

    Args:
        text: A name from datalist.py, a split that holds ``gt`` (and ``im``, ``mask``), or a folder of ground truths.
        images: Folder of its images, if not the ``im`` of the split.
        masks: Folder of its coarse masks, if not the ``mask`` of the split.
        limit: Highest number of ground truths.

    Raises:
        FileNotFoundError: If a folder does not exist.
        DatasetError: If a folder holds no image file, or two with the same stem.
    """
    known = datalist.named()
    if text in known:
        gt, im, mid = (resolve(known[text][key]) for key in ("gt_dir", "im_dir", "mid_dir"))
        folder, typed = im.parent, Path(known[text]["im_dir"]).parent
    else:
        typed, gt = Path(os.path.abspath(text)), Path(text).resolve()  # noqa: PTH100 a link has its own name
        typed = typed.parent if typed.name == "gt" else typed
        gt = gt / "gt" if (gt / "gt").is_dir() else gt
        folder = gt.parent if gt.name == "gt" else gt
        im, mid = folder / "im", folder / OWN
    names = [entry["name"] for entry in known.values() if entry["gt_dir"] and resolve(entry["gt_dir"]) == gt]
    name = names[0] if names else folder.name
    gts = list_images(gt)
    return DataSet(
        name=name,
        folders=tuple(dict.fromkeys((name, folder.name, typed.name))),
        gts=dict(islice(gts.items(), limit)),
        ignored=frozenset(islice(gts, limit or len(gts), None)),
        images=list_images(images) if images else _optional(im),
        masks=list_images(masks) if masks else _optional(mid),
        kinds=_kinds(folder, gt, im, masks or mid),
    )


def find_listed(path: Path, limit: int | None = None) -> DataSet:
    """Return the data set of a list of pictures; its name is that of the file.

    Args:
        path: See :func:`IS_Net.listing.read_listing`. The rows need ``gt``; ``mask`` is the own coarse mask, and
            ``box`` its box.
        limit: Highest number of rows.

    Raises:
        DatasetError: If the list is faulty, or holds a name twice.
        BoxError: If a box is not four finite numbers.
    """
    entries: dict[str, Entry] = {}
    for entry in read_listing(path, ["gt"]):
        other = entries.setdefault(entry.name, entry)
        if other is not entry:
            raise DatasetError(f"{entry.where}: the name {entry.name!r} is given twice; expected one row per picture")
    found = dict(islice(entries.items(), limit))
    masks = {name: entry.mask for name, entry in found.items() if entry.mask is not None}
    return DataSet(
        name=path.stem,
        folders=(path.stem,),
        gts={name: entry.gt for name, entry in found.items()},
        ignored=frozenset(entries.keys() - found.keys()),
        images={name: entry.image for name, entry in found.items()},
        masks=masks,
        kinds={OWN: path} if masks else {},
        boxes={
            name: four_numbers(entry.prompt["box"], f"{entry.where}: box")
            for name, entry in found.items()
            if "box" in entry.prompt
        },
    )


def _optional(folder: Path) -> dict[str, Path]:
    """Return the files of a folder that may be missing; only the report, or a prediction, needs them."""
    try:
        return list_images(folder) if folder.is_dir() else {}
    except ValueError as error:
        logger.warning("left out of the report: %s", error)
        return {}


def _kinds(folder: Path, gt: Path, im: Path, own: Path) -> dict[str, Path]:
    """Return the folders of coarse masks in a split: its own first, then the others by name."""
    kinds = {OWN: own} if own.is_dir() else {}
    for sub in sorted(folder.iterdir()):
        known = sub.name in ("gt", "im", OWN) or sub.resolve() in (gt, im, own.resolve())
        if not known and sub.is_dir() and any(is_image(path) for path in sub.iterdir()):
            kinds[sub.name] = sub
    return kinds


def find_maps(data_set: DataSet, folder: Path, alone: bool) -> dict[str, Path]:
    """Return the maps that a method made of a data set.

    Args:
        data_set: The data set.
        folder: The folder of the method. The maps are in a subfolder with the data set's name, or in the folder itself.
        alone: Whether this is the only data set; otherwise there must be a subfolder for each.

    Raises:
        FileNotFoundError: If a folder does not exist.
        ValueError: If a folder holds no image file, or two with the same stem.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: the folder does not exist; expected a folder of maps")
    for name in data_set.folders:
        if (folder / name).is_dir():
            return list_images(folder / name)
    tried = " or ".join(data_set.folders)
    if not alone:
        raise FileNotFoundError(
            f"{folder}: found no folder {tried} in it; with several data sets, maps are expected in "
            "DIR/<data set>/NAME.png"
        )
    try:
        return list_images(folder)
    except ValueError as error:
        raise EvaluationError(f"{error} (and it has no folder {tried})") from error


def pair_up(data_set: DataSet, method: str, files: dict[str, Path]) -> list[str]:
    """Add a method's maps to a data set.

    Maps without a ground truth are logged and left out.

    Args:
        data_set: The data set; its ``maps`` and ``methods`` are changed.
        method: The name of the method.
        files: The maps by their stems.

    Returns:
        Messages about maps that are missing, have a wrong size, or cannot be read.
    """
    known = data_set.gts.keys() | data_set.ignored
    if extra := [str(path) for name, path in files.items() if name not in known]:
        listed = "".join(f"\n  {path}" for path in extra)
        logger.warning("%s: %d maps have no ground truth and are left out:%s", data_set.name, len(extra), listed)
    data_set.maps[method] = {name: files[name] for name in data_set.gts if name in files}
    data_set.methods.append(method)
    return _problems(data_set, files, f"{data_set.name}, {method}: there is no map of")


def _problems(data_set: DataSet, files: Mapping[str, Path], missing: str) -> list[str]:
    """Return messages about files that are missing, have another size than the ground truth, or cannot be read."""

    def problem(name: str) -> str | None:
        if name not in files:
            return f"{missing} {name}"
        try:
            found, expected = image_size(files[name]), image_size(data_set.gts[name])
        except ImageError as error:
            return str(error)
        if found != expected:
            return size_mismatch(files[name], found, f"its ground truth {data_set.gts[name]}", expected)
        return None

    with ThreadPoolExecutor() as pool:  # only headers, but of thousands of files, which may be on a network
        return [found for found in pool.map(problem, data_set.gts) if found]


def _listed(problems: Sequence[str]) -> str:
    unique = list(dict.fromkeys(problems))  # a ground truth is read once for each method
    return f"{len(unique)} files or folders cannot be scored:" + "".join(f"\n  {problem}" for problem in unique)


def _methods(pred: Sequence[str]) -> dict[str, Path]:
    """Return the folders of the methods by their names."""
    methods: dict[str, Path] = {}
    for text in pred:
        name, _, folder = text.partition("=")
        if not folder or Path(text).is_dir():
            name, folder = Path(text).resolve().name, text
        if not name:
            raise EvaluationError(f"--pred {text}: the method has no name; expected DIR or NAME=DIR")
        if name == COARSE:
            raise EvaluationError(
                f"--pred {text}: {COARSE!r} is the name of the data sets' own coarse masks; choose another with "
                "--pred NAME=DIR"
            )
        if name in methods:
            raise EvaluationError(f"two methods are named {name!r}; give them names with --pred NAME=DIR")
        methods[name] = Path(folder)
    return methods


def gather(request: Request, networks: Mapping[str, int] | None = None) -> list[DataSet]:
    """Find all data sets with the files of all methods.

    Args:
        request: What to evaluate.
        networks: By name, the input channels of the networks that predict.

    Raises:
        EvaluationError: If anything is missing or does not fit together; all problems are listed.
    """
    networks = networks or {}
    for name, channels in networks.items():
        if request.jitter and channels <= MASK_CHANNEL:
            raise EvaluationError(
                f"--jitter: {name} has {channels} input channels, and no prompt; expected weights with 4 or 5"
            )
    methods, data_sets, problems, expected = _methods(request.pred), [], [], 0
    beside = [request.images or [None] * len(request.gt), request.masks or [None] * len(request.gt)]
    for text, images, masks in zip(request.gt, *beside, strict=True):
        splits = find_splits(text)
        expected += len(splits)
        if len(splits) > 1 and (images or masks):
            problems.append(f"{text}: holds {len(splits)} splits; name each with --gt to use --images or --masks")
            continue
        for split in splits:
            try:
                data_sets.append(find_data_set(split, images, masks, request.limit))
            except (OSError, ValueError) as error:
                problems.append(str(error))
    if request.manifest:
        expected += 1
        data_sets.append(find_listed(request.manifest, request.limit))
    names = [data_set.name for data_set in data_sets]
    if len(set(names)) < len(names):
        raise EvaluationError(f"two data sets have the same name: {', '.join(names)}; rename the folder of one")
    if MEAN in names:
        raise EvaluationError(f"a data set is named {MEAN!r}, like the mean of all data sets; rename its folder")
    kinds = _chosen_kinds(request, networks, data_sets)
    for data_set in data_sets:
        problems += _add_coarse(data_set, request, networks, kinds)
        for method, folder in methods.items():
            if method in data_set.methods:
                raise EvaluationError(f"two methods are named {method!r}; give them names with --pred NAME=DIR")
            try:
                maps = find_maps(data_set, folder, expected == 1)
            except (OSError, ValueError) as error:
                problems.append(str(error))
            else:
                problems += pair_up(data_set, method, maps)
    if problems:
        raise EvaluationError(_listed(problems))
    return data_sets


def _chosen_kinds(request: Request, networks: Mapping[str, int], data_sets: Sequence[DataSet]) -> list[str]:
    """Return the kinds of coarse masks that the request asks for."""
    if request.coarse:
        if PERFECT in request.coarse and not networks:
            raise EvaluationError(f"--coarse {PERFECT}: is the ground truth, and is refined with --weights only")
        return list(dict.fromkeys(request.coarse))
    if not networks:
        return [] if request.coarse is None else [OWN]
    if request.jitter:
        return [OWN if all(OWN in data_set.kinds for data_set in data_sets) else PERFECT]
    if request.coarse is None and all(channels <= MASK_CHANNEL for channels in networks.values()):
        return []
    kinds = list(dict.fromkeys(kind for data_set in data_sets for kind in data_set.kinds))
    if not kinds and data_sets:
        raise EvaluationError(
            f"{', '.join(data_set.name for data_set in data_sets)}: no folder of coarse masks beside gt; make one with "
            f"dis-sam masks, or use --coarse {PERFECT}"
        )
    return kinds


def _changed(seed: int, network: str, channels: int, kind: str, with_boxes: bool) -> list[Prediction]:
    """Return the predictions of a network from changed coarse masks of a kind, and from changed boxes alone."""
    found = []
    for change in list_changes(channels):
        used = None if change.prompt == BOX else kind
        if with_boxes or used:
            found.append(Prediction(_label(change, used, network), network, used, change, seed))
    return found


def _add_coarse(data_set: DataSet, request: Request, networks: Mapping[str, int], kinds: Sequence[str]) -> list[str]:
    """Add the coarse masks to a data set, and what the networks make of them; return messages about problems."""
    problems = []
    for kind in kinds:
        if kind != PERFECT and kind not in data_set.kinds:
            found = ", ".join(data_set.kinds) or "none"
            problems.append(
                f"--coarse: {data_set.name} has no coarse masks of the kind {kind!r}, found {found}; name kinds that "
                "exist, or the folder of the own masks with --masks"
            )
            continue
        method = kind if networks or request.coarse else COARSE
        try:
            files = data_set.gts if kind == PERFECT else _coarse_files(data_set, kind)
        except ValueError as error:
            problems.append(str(error))
            continue
        problems += pair_up(data_set, method, files)
        data_set.coarse.add(method)
        for network, channels in networks.items():
            if channels > MASK_CHANNEL:
                own = [Prediction(f"{kind} -> {network}", network, kind)]
                own = _changed(request.seed, network, channels, kind, kind == kinds[0]) if request.jitter else own
                data_set.predictions += own
                data_set.methods += [prediction.method for prediction in own]
    for network, channels in networks.items():
        if channels <= MASK_CHANNEL:
            if network in data_set.methods:
                raise EvaluationError(f"--weights: {network!r} is also a kind of coarse mask; rename the file")
            data_set.predictions.append(Prediction(network, network, None))
            data_set.methods.append(network)
    if networks:
        problems += _problems(data_set, data_set.images, f"{data_set.name}: there is no image of")
    return problems


def _coarse_files(data_set: DataSet, kind: str) -> dict[str, Path]:
    folder = data_set.kinds[kind]
    return list_images(folder) if folder.is_dir() else data_set.masks


# --- predict and score ----------------------------------------------------------------------------------------------


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
        thumbnails: Folder for reduced copies of predicted maps, which :func:`contents` shows; None writes none.

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
        raise ScoringError(_listed(problems))
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
                else:
                    maps |= refined
            predicted.append((seconds, problems))
            yield Job(name, data_set.gts[name], maps)

    outcomes = tqdm(scorer.measure(jobs()), "score", len(items), unit="image")
    for (data_set, name), outcome in zip(items, outcomes, strict=True):
        seconds, problems = predicted.popleft()
        yield Measured(data_set, name, outcome._replace(problems=problems + outcome.problems), seconds)


# --- in parts -------------------------------------------------------------------------------------------------------


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
            raise ScoringError(_listed(problems))
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
        how = [request.metrics, data_set.methods, self._weights, request.precision, data_set.boxes.get(name)]
        how += [request.seed] if request.jitter else []
        return hashlib.sha256(json.dumps([CACHE_VERSION, found, how]).encode()).hexdigest()[:32]

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


class _Refiner:
    """Makes the predictions of a data set, image by image."""

    def __init__(self, data_set: DataSet, networks: Mapping[str, DISPredictor], thumbnails: Path | None) -> None:
        self.data_set, self.networks, self.thumbnails = data_set, networks, thumbnails
        self.kinds = list(dict.fromkeys(p.kind for p in data_set.predictions if p.kind))
        folders = {kind: data_set.kinds[kind] for kind in self.kinds if kind != PERFECT}
        self.manifests = {kind: read_manifest(folder) for kind, folder in folders.items() if folder.is_dir()}
        self.manifests.setdefault(OWN, {name: {"box": box} for name, box in data_set.boxes.items()})

    def __call__(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Return the coarse masks and the maps of an image, (H, W) uint8 by method, and the maps' times in seconds.

        Raises:
            ImageError: If a file cannot be read.
        """
        image = read_image(self.data_set.images[name])
        masks = {kind: self._mask(kind, name) for kind in self.kinds}
        maps, seconds = dict(masks), {}
        for prediction in self.data_set.predictions:
            method, network, kind, change, seed = prediction
            mask, box = masks.get(kind), self.manifests.get(kind, {}).get(name, {}).get("box")
            if change:
                gt = read_mask(self.data_set.gts[name])
                mask, box = change_prompt(change, name, image, gt, mask, seed)
            started = time.perf_counter()
            alpha = self.networks[network].predict(image, mask, box)
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


# --- show -----------------------------------------------------------------------------------------------------------


def contents(
    data_sets: Sequence[DataSet], results: Sequence[Scores], outputs: Mapping[str, Path], worst: int
) -> dict[str, bytes]:
    """Return the contents of output files.

    Args:
        data_sets: The evaluated data sets.
        results: Their scores.
        outputs: Files by their kind: ``csv``, ``json``, ``html`` or ``sheet``.
        worst: Number of worst results in the HTML report, for each method and data set, and on the contact sheet.
    """
    by_name = {data_set.name: data_set for data_set in data_sets}

    def pictures(scores: Scores, name: str) -> Iterator[Picture]:
        return _pictures(by_name[scores.data_set], scores.method, name)

    varied = any(scores.prompt for scores in results)
    render = {
        "csv": lambda: csv_text(results),
        "json": lambda: json_text(results),
        "html": lambda: robustness_page(results) if varied else html_page(results, pictures, worst),
    }
    # the name of a file may contain bytes that are not text
    files = {kind: make().encode("utf-8", "backslashreplace") for kind, make in render.items() if kind in outputs}
    if "sheet" in outputs:
        files["sheet"] = encode_image(worst_sheet(results, pictures, worst), outputs["sheet"].suffix.lower())
    return files


def _pictures(data_set: DataSet, method: str, name: str) -> Iterator[Picture]:
    kinds = {prediction.method: prediction.kind for prediction in data_set.predictions}
    coarse = {} if method in data_set.coarse else data_set.masks
    if method in kinds:
        coarse = {} if kinds[method] in (None, PERFECT) else data_set.maps[kinds[method]]
    readers = [
        ("image", data_set.images, read_image),
        ("ground truth", data_set.gts, read_mask),
        ("coarse mask", coarse, read_mask),
        (method, data_set.thumbnails.get(method) or data_set.maps[method], read_mask),
    ]
    for caption, paths, read in readers:
        if name in paths:
            try:
                yield caption, read(paths[name])
            except ImageError as error:  # an image or a coarse mask; the others could be scored
                logger.warning("left out of the report: %s", error)
