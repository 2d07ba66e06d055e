"""What is evaluated: the data sets, the maps of all methods, and the predictions that are to be made of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from IS_Net import datalist
from IS_Net.errors import BoxError, DatasetError, EvaluationError, ImageError, MissingFileError
from IS_Net.images import image_size, is_image, list_images, name_of, read_image, read_mask, size_mismatch
from IS_Net.listing import Entry, read_listing
from IS_Net.metric_names import ALL
from IS_Net.paths import resolve
from IS_Net.preprocess import MASK_CHANNEL, clip_box, four_numbers
from IS_Net.report import MEAN
from IS_Net.robustness import BOX, MASK, Change, list_changes
from IS_Net.samples import check_dataset

logger = logging.getLogger(__name__)

COARSE = "coarse"
"""The method name of the data sets' own coarse masks, where maps are scored."""

OWN = "mask"
"""The kind of the data sets' own coarse masks."""

PERFECT = "perfect"
"""The kind of coarse mask that is the ground truth itself, binarized."""


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
        MissingFileError: If a folder does not exist.
        DatasetError: If a folder holds no image file, or two with the same stem; or an entry of datalist.py is faulty,
            or has no ground truths.
    """
    known = datalist.named()
    mid: Path | None
    if text in known:
        entry = check_dataset(known[text])
        if entry.gt_dir is None:
            raise DatasetError(f"{text}: the entry of datalist.py has no folder of ground truths; set its gt_dir")
        gt, im, mid = entry.gt_dir, entry.im_dir, entry.mid_dir
        folder, typed = im.parent, Path(known[text]["im_dir"]).parent
    else:
        typed, gt = Path(os.path.abspath(text)), Path(text).resolve()  # noqa: PTH100 a link has its own name
        typed = typed.parent if typed.name == "gt" else typed
        gt = gt / "gt" if (gt / "gt").is_dir() else gt
        folder = gt.parent if gt.name == "gt" else gt
        im, mid = folder / "im", folder / OWN
    # entries that have nothing to do with this data set are not checked
    of_gt = [entry for entry in known.values() if entry.get("gt_dir") and resolve(entry["gt_dir"]) == gt]
    name = check_dataset(of_gt[0]).name if of_gt else folder.name
    gts = list_images(gt)
    return DataSet(
        name=name,
        folders=tuple(dict.fromkeys((name, folder.name, typed.name))),
        gts=dict(islice(gts.items(), limit)),
        ignored=frozenset(islice(gts, limit or len(gts), None)),
        images=list_images(images) if images else _optional(im),
        masks=list_images(masks) if masks else _optional(mid),
        kinds=_kinds(folder, [gt, im, images], masks or mid),
    )


def find_listed(path: Path, limit: int | None = None) -> DataSet:
    """Return the data set of a list of pictures; its name is that of the file.

    Args:
        path: See :func:`IS_Net.listing.read_listing`. The rows need ``gt``; ``mask`` is the own coarse mask, and
            ``box`` its box.
        limit: Highest number of rows.

    Raises:
        DatasetError: If the list is faulty, or holds a name twice.
        BoxError: If boxes are not four finite numbers, or do not fit their pictures; the message names all of them.
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
        boxes=_listed_boxes(found),
    )


def _listed_boxes(entries: Mapping[str, Entry]) -> dict[str, Sequence[float]]:
    def check(entry: Entry) -> str | None:
        box, where = entry.prompt["box"], f"{entry.where}: box"
        try:
            four_numbers(box, where)  # also if the image cannot be read
            clip_box(box, *image_size(entry.image), where)
        except BoxError as error:
            return str(error)
        except ImageError:  # only predictions need images, and they name those that cannot be read
            pass
        return None

    with_box = {name: entry for name, entry in entries.items() if "box" in entry.prompt}
    with ThreadPoolExecutor() as pool:  # only headers, but of thousands of files, which may be on a network
        if problems := [found for found in pool.map(check, with_box.values()) if found]:
            raise BoxError(problems_text(problems))
    return {name: four_numbers(entry.prompt["box"], entry.where) for name, entry in with_box.items()}


def _optional(folder: Path | None) -> dict[str, Path]:
    """Return the files of a folder that may be missing; only the report, or a prediction, needs them."""
    try:
        return list_images(folder) if folder and folder.is_dir() else {}
    except ValueError as error:
        logger.warning("left out of the report: %s", error)
        return {}


def _kinds(folder: Path, others: Sequence[Path | None], own: Path | None) -> dict[str, Path]:
    """Return the folders of coarse masks in a split: its own first, then those by name that are not ``others``."""
    kinds = {OWN: own} if own and own.is_dir() else {}
    known = {path.resolve() for path in (*others, own) if path}
    for sub in sorted(folder.iterdir()):
        if sub.name in ("gt", "im", OWN) or sub.resolve() in known or not sub.is_dir():
            continue
        if any(is_image(path) for path in sub.iterdir()):
            kinds[sub.name] = sub
    return kinds


def _holds_masks(folder: Path, gts: Mapping[str, Path]) -> bool:
    """Return whether a file of a folder, of a ground truth if there is one, is a mask; log if it is another picture."""
    files = sorted(path for path in folder.iterdir() if is_image(path))
    file = next((path for path in files if name_of(Path(path.name)) in gts), files[0])
    try:
        read_mask(file)
    except ImageError as error:
        try:
            read_image(file)
        except ImageError:
            return True  # a damaged file tells nothing of the others; the run names it
        logger.warning("%s: is left out, because it does not hold coarse masks: %s", folder, error)
        return False
    return True


def find_maps(data_set: DataSet, folder: Path, alone: bool) -> dict[str, Path]:
    """Return the maps that a method made of a data set.

    Args:
        data_set: The data set.
        folder: The folder of the method. The maps are in a subfolder with the data set's name, or in the folder itself.
            Where names begin with folders, these are searched too.
        alone: Whether this is the only data set; otherwise there must be a subfolder for each.

    Raises:
        MissingFileError: If a folder does not exist.
        ValueError: If a folder holds no image file, or two with the same stem.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: the folder does not exist; expected a folder of maps")
    recursive = any("/" in name for name in data_set.gts)
    for name in data_set.folders:
        if (folder / name).is_dir():
            files = list_images(folder / name, recursive)
            if alone and any(gt.startswith(f"{name}/") for gt in data_set.gts):  # it may be the first folder of names
                return max(files, list_images(folder, recursive), key=lambda f: len(f.keys() & data_set.gts.keys()))
            return files
    tried = " or ".join(data_set.folders)
    if not alone:
        raise MissingFileError(
            f"{folder}: found no folder {tried} in it; with several data sets, maps are expected in "
            "DIR/<data set>/NAME.png"
        )
    try:
        return list_images(folder, recursive)
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
        problems += _add_coarse(data_set, request, networks, kinds[data_set.name])
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
        raise EvaluationError(problems_text(problems))
    return data_sets


def _chosen_kinds(
    request: Request, networks: Mapping[str, int], data_sets: Sequence[DataSet]
) -> dict[str, Sequence[str]]:
    """Return the kinds of coarse masks that the request asks for, by the names of the data sets."""
    if networks and request.jitter and not request.coarse:
        return {data_set.name: [OWN if OWN in data_set.kinds else PERFECT] for data_set in data_sets}
    return dict.fromkeys((data_set.name for data_set in data_sets), _common_kinds(request, networks, data_sets))


def _common_kinds(request: Request, networks: Mapping[str, int], data_sets: Sequence[DataSet]) -> list[str]:
    """Return the kinds of coarse masks that all data sets should have."""
    if request.coarse:
        if PERFECT in request.coarse and not networks:
            raise EvaluationError(f"--coarse {PERFECT}: is the ground truth, and is refined with --weights only")
        return list(dict.fromkeys(request.coarse))
    if not networks:
        return [] if request.coarse is None else [OWN]
    if request.coarse is None and all(channels <= MASK_CHANNEL for channels in networks.values()):
        return []
    for data_set in data_sets:
        found = data_set.kinds.items()
        data_set.kinds = {kind: folder for kind, folder in found if kind == OWN or _holds_masks(folder, data_set.gts)}
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


def problems_text(problems: Sequence[str]) -> str:
    """Return the message that lists what is wrong with files or folders, each problem once."""
    unique = list(dict.fromkeys(problems))  # a ground truth is read once for each method
    return f"{len(unique)} files or folders cannot be scored:" + "".join(f"\n  {problem}" for problem in unique)
