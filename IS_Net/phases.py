"""The phases of a run: GT encoder, segmentation, validation or inference; and the rules for resuming."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from IS_Net import datalist, distributed
from IS_Net.checkpoint import assign_weights, load_state, load_weights
from IS_Net.data_loader import (
    DISDataset,
    Synthesis,
    TrainDataset,
    TrainKey,
    ValidBatch,
    ValidDataset,
    ValidItem,
    collate_valid,
    train_loader,
    valid_loader,
)
from IS_Net.device import autocast_dtype, pick_device
from IS_Net.doctor import require_usable, take_first_look
from IS_Net.engine import STATE_FILE, Progress, Run, find_remedy, fit, predict_maps
from IS_Net.errors import (
    BoxError,
    CheckpointError,
    DatasetError,
    HyparError,
    ImageError,
    ScoringError,
    UnusableSamplesError,
    UserError,
)
from IS_Net.files import is_file_name, prepare_output, refuse_to_replace, remove_leftovers
from IS_Net.hypar import FIELDS, Settings
from IS_Net.lock import lock_folder
from IS_Net.machine import cores_per_process
from IS_Net.models import ISNetDIS, ISNetGTEncoder
from IS_Net.paths import resolve
from IS_Net.preflight import describe, find_batch_size
from IS_Net.preprocess import IMAGE_CHANNELS, MASK_CHANNEL, Size
from IS_Net.report import MEAN, Scores
from IS_Net.run_log import RunLog, SilentLog
from IS_Net.scoring import Job, Scorer
from IS_Net.tasks import GTEncoderTask, SegmentationTask
from IS_Net.worker import workers_that_fit

logger = logging.getLogger(__name__)

Datasets = Sequence[dict[str, str]]
"""Entries as in :mod:`IS_Net.datalist`."""

_INPUTS = ("im_dir", "gt_dir", "mid_dir", "mask_dir")
"""Keys of an entry that name folders which are read."""

_FREE_TO_CHANGE = (
    *("restore_model", "model_path", "device", "workers", "valid_out_dir", "metrics", "resume"),
    *("max_minutes", "save_minutes", "loader_minutes", "check", "recompute"),
)
"""Settings that do not affect the result of a resumed training."""


class Session:
    """The device, the network and the data sets that follow from the settings.

    Args:
        settings: The settings of the run.

    Raises:
        DeviceError: If the device or the precision is not available.
        HyparError: If a setting does not fit the number of processes.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.mode == "train":
            distributed.require_divisible("batch_size_train", settings.batch_size_train)
        if settings.auto_batch and distributed.size() > 1:
            raise HyparError(
                "hypar['auto_batch']: tries batch sizes for one GPU alone; with torchrun, set batch_size_train, the "
                "batch size of all processes together"
            )
        self.settings = settings
        torch.manual_seed(settings.seed)  # of the weights of a new network; nothing else draws from this generator
        self.device = pick_device(distributed.local_device(settings.device))
        self.dtype = autocast_dtype(self.device, settings.model_digit)
        self.model: ISNetDIS = ISNetDIS(settings.model) if isinstance(settings.model, int) else settings.model
        # more would only wait for each other
        self.workers = min(settings.workers, cores_per_process())
        self._pin = self.device.type == "cuda"

    def dataset(self, entry: dict[str, str], in_ch: int, need_gt: bool, preload: bool, size: Size = ()) -> DISDataset:
        """Open a data set, whose samples have ``size``, else ``input_size``; build its cache if there is none yet."""
        size = size or self.settings.input_size
        return DISDataset(entry, in_ch, self.settings.cache_size, size, need_gt=need_gt, preload=preload)

    def require_usable(self, train: Datasets, valid: Datasets) -> None:
        """Read all files that the run uses, as :func:`IS_Net.doctor.require_usable` does, in the main process."""

        def used(entries: Datasets, masks: bool) -> Datasets:
            return entries if masks else [{**entry, "mask_dir": "", "mid_dir": ""} for entry in entries]

        masks = self.model.in_ch > MASK_CHANNEL
        with distributed.together():
            if distributed.is_main():
                require_usable(used(train, masks and self.settings.simulate_mask < 1), used(valid, masks))

    def valid_loaders(self, datasets: Datasets, need_gt: bool) -> list[DataLoader]:
        """Return a loader for each data set, in order.

        If ``need_gt`` is False, whoever reads the samples skips those that cannot be read, and a data set that cannot
        be cached because of them is read from its files.
        """
        settings = self.settings
        opened = [self._valid_dataset(entry, need_gt) for entry in datasets]
        size, timeout = settings.batch_size_valid, 60 * settings.loader_minutes
        # besides the planes, a batch holds ground truths at the sizes of the images, taken to be about as large
        batch_bytes = 2 * size * (self.model.in_ch + 1) * math.prod(settings.input_size)
        workers = workers_that_fit(self.workers, batch_bytes * distributed.processes_here())
        return [valid_loader(ValidDataset(data), size, workers, self._pin, timeout) for data in opened]

    def _valid_dataset(self, entry: dict[str, str], need_gt: bool) -> DISDataset:
        try:
            return self.dataset(entry, self.model.in_ch, need_gt, self.settings.cache_boost_valid)
        except UnusableSamplesError as error:
            if need_gt:
                raise
            logger.warning("%s\nThe files are read without a cache, which would hold all of them", error)
            return self.dataset({**entry, "cache_dir": ""}, self.model.in_ch, need_gt, False)

    def run(self, train_datasets: Datasets, valid_datasets: Datasets, log: RunLog, phase_1: bool = False) -> Run:
        """Return what both phases are trained with, after a first look at the files; phase 1 may be about to begin."""
        settings = self.settings
        # with simulate_mask=1 no mask file is read
        in_ch = IMAGE_CHANNELS if settings.simulate_mask == 1 else self.model.in_ch
        # windows are cut from samples at the size of the cache
        size, crop_size = settings.input_size, settings.crop_size
        if settings.window_share:
            size = crop_size = settings.cache_size
        opened = [self.dataset(entry, in_ch, True, settings.cache_boost_train, size) for entry in train_datasets]
        backgrounds = None
        if settings.copy_paste and settings.backgrounds:
            entry = datalist.photographs(settings.backgrounds, cache=True)
            backgrounds = self.dataset(entry, IMAGE_CHANNELS, False, settings.cache_boost_train, size)
        data = TrainDataset(
            opened,
            settings.seed,
            settings.random_flip_h,
            settings.random_flip_v,
            crop_size,
            self.model.in_ch,
            Synthesis(settings.copy_paste, settings.simulate_mask, backgrounds),
            self.device,
        )
        batch_size = settings.batch_size_train
        if settings.auto_batch:
            if data.device.type != "cpu":
                data[TrainKey(0, 0)]  # the data sets are copied to the GPU, whose memory a batch then has to share
            with torch.random.fork_rng(devices=[]):  # the GT encoder of phase 1 begins with the same weights
                gt_encoder = ISNetGTEncoder() if settings.interm_sup else None
                batch_size = find_batch_size(self.model, settings, self.device, self.dtype, len(data), gt_encoder)
            self.settings = settings = replace(settings, batch_size_train=batch_size, auto_batch=False)
        batch_bytes = batch_size * (self.model.in_ch + 1) * math.prod(crop_size)
        make_loader = functools.partial(
            train_loader,
            data,
            batch_size,
            workers_that_fit(self.workers, batch_bytes * distributed.processes_here() // distributed.size()),
            pin=self._pin,
            timeout=60 * settings.loader_minutes,
        )
        valid_loaders = self.valid_loaders(valid_datasets, need_gt=True)
        validated = [loader.dataset.dataset for loader in valid_loaders]
        take_first_look(
            [*opened, *filter(None, [backgrounds])], validated, settings.gt_encoder_stop_f if phase_1 else None
        )
        logger.info("%s", describe(self.model, settings, self.device, self.dtype))
        logger.info(
            "%d training samples in batches of %d, %d validation samples; processes: %d",
            *(len(data), batch_size, sum(map(len, validated)), distributed.size()),
        )
        # the mean over the validation sets does not depend on their order; the training samples do
        names = {"train_datasets": _sizes(opened), "valid_datasets": sorted(_sizes(validated))}
        return Run(settings, self.device, self.dtype, valid_loaders, make_loader, log, names)


def _sizes(datasets: Sequence[DISDataset]) -> list[list[Any]]:
    return [[data.name, len(data)] for data in datasets]


def _check_datasets(datasets: Datasets, key: str) -> None:
    if not datasets:
        raise DatasetError(f"{key} is empty; choose data sets from datalist.py or name folders")
    names = [str(entry.get("name")) for entry in datasets]
    if len(set(names)) < len(names):
        raise DatasetError(f"{key}: two data sets share a name ({', '.join(names)}); rename one of them")
    for name in names:
        if not is_file_name(name):
            raise DatasetError(f"{key}: the name of a data set becomes a folder of maps, and {name!r} cannot be one")


def _check_maps(datasets: Datasets, folder: str) -> None:
    """Refuse a folder of maps that cannot be written to, or in which the maps would replace files of a data set."""
    if not folder:
        return
    inputs = [resolve(entry[key]) for entry in datasets for key in _INPUTS if entry.get(key)]
    outputs = [Path(folder) / str(entry["name"]) for entry in datasets]
    refuse_to_replace(outputs, inputs)
    for output in outputs:
        prepare_output(output / "NAME.png", overwrite=True)


# --- training -------------------------------------------------------------------------------------------------------


def train(session: Session, train_datasets: Datasets, valid_datasets: Datasets) -> Progress:
    """Train both phases, or the rest of them if ``restore_model`` is a training state.

    Args:
        session: Of mode ``train``.
        train_datasets: An entry that is given twice is used twice per epoch.
        valid_datasets: Are scored at each validation.

    Returns:
        The progress of the last phase that was trained.

    Raises:
        UserError: If a setting, data set or checkpoint cannot be used, or the loss is not finite.
    """
    _check_datasets([e for i, e in enumerate(train_datasets) if e not in train_datasets[:i]], "train_datasets")
    _check_datasets(valid_datasets, "valid_datasets")
    _check_maps(valid_datasets, session.settings.valid_out_dir)
    if session.settings.check:
        session.require_usable(train_datasets, valid_datasets)
    with ExitStack() as stack:
        with distributed.together():
            if distributed.is_main():
                stack.enter_context(lock_folder(session.settings.model_path, "a training"))
                remove_leftovers(session.settings.model_path)
        return _train(session, train_datasets, valid_datasets)


def _train(session: Session, train_datasets: Datasets, valid_datasets: Datasets) -> Progress:
    log = RunLog(Path(session.settings.model_path)) if distributed.is_main() else SilentLog()
    state = _state_to_resume(session)
    if state:
        # if phase 2 has not begun, it still starts from the weights that the run was started with
        session.settings = replace(session.settings, restore_model=state["settings"]["restore_model"])
        if session.settings.auto_batch:  # it was tried when the run began
            size = state["settings"]["batch_size_train"]
            session.settings = replace(session.settings, batch_size_train=size, auto_batch=False)
        _log_changed_settings(session.settings, state)
    settings = session.settings
    resume = state if state and state["phase"] == SegmentationTask.name else None
    if settings.restore_model and not resume:
        load_weights(session.model, settings.restore_model, settings.mask_skip_logit, settings.box_gain)
    phase_1 = settings.interm_sup and not settings.gt_encoder_model and not (resume and resume["gt_encoder"])
    run = session.run(train_datasets, valid_datasets, log, phase_1)
    if state:
        _adapt_to_datasets(state, run)
    try:
        gt_encoder = None
        if settings.interm_sup:
            gt_encoder, unfinished = _trained_gt_encoder(run, state)
            if unfinished:
                return unfinished
        if resume:
            assign_weights(session.model, resume["model"], run.folder / STATE_FILE)
        return fit(SegmentationTask(session.model, gt_encoder, settings), run, resume)
    finally:
        log.close()


def _state_to_resume(session: Session) -> dict[str, Any] | None:
    """Return the training state that ``restore_model`` names, or None to start a new run.

    Raises:
        HyparError: If a new run would overwrite another one, the state is not in ``model_path``, or ``interm_sup`` does
            not fit its phase.
        CheckpointError: If the state cannot be read, or is of a network with other input channels.
    """
    settings, folder = session.settings, Path(session.settings.model_path)
    path = Path(settings.restore_model)
    if settings.resume and (folder / STATE_FILE).is_file():
        path = folder / STATE_FILE
        logger.info("resume: continuing from %s", path)
    if path.name != STATE_FILE:
        existing = [name for name in (STATE_FILE, SegmentationTask.weights_file) if (folder / name).is_file()]
        if existing:
            resume = f"resume it with restore_model={STATE_FILE}, " if STATE_FILE in existing else ""
            raise HyparError(
                f"hypar['model_path']: {folder} already holds a training run ({', '.join(existing)}), which this one "
                f"would overwrite; {resume}choose another model_path, or move the folder"
            )
        return None
    state = load_state(path)
    if path.parent != folder:
        raise HyparError(
            f"hypar['restore_model']: {path} can only be resumed in its own folder; set model_path to {path.parent}, "
            "or give best.safetensors of that folder to start a new run from its weights"
        )
    then = state["settings"]
    if settings.in_ch != then["model"]:
        raise CheckpointError(
            f"{path}: is of a network with {then['model']} input channels, hypar['model'] has {settings.in_ch}; set it "
            f"to {then['model']}"
        )
    _check_phase(settings, state, path)
    return state


def _check_phase(settings: Settings, state: dict[str, Any], path: Path) -> None:
    """Refuse a state of a phase that would be given up: the first save would replace it.

    Raises:
        HyparError: If phase 1 would begin although the state is of phase 2, or phase 2 although it is of phase 1.
    """
    in_phase_1 = state["phase"] == GTEncoderTask.name
    if in_phase_1 and not settings.interm_sup:
        raise HyparError(
            f"hypar['interm_sup']: is False, but {path} is a state of phase 1, which trains the GT encoder, expected "
            "True; resume with interm_sup=True, or begin a run without a GT encoder in another model_path"
        )
    if not in_phase_1 and not state["gt_encoder"] and settings.interm_sup and not settings.gt_encoder_model:
        raise HyparError(
            f"hypar['interm_sup']: is True, but {path} is a state of phase 2 without a GT encoder, expected False; "
            "resume with interm_sup=False, or set gt_encoder_model to a trained GT encoder"
        )


def _log_changed_settings(settings: Settings, state: dict[str, Any]) -> None:
    now = settings.as_dict()
    before = {key: state["settings"].get(key, FIELDS[key].default) for key in now}  # a state may be older than a key
    _log_changes(
        settings,
        "settings",
        [
            f"{key} {before[key]} -> {value}"
            for key, value in now.items()
            if key not in _FREE_TO_CHANGE and value != before[key]
        ],
    )


def _log_changes(settings: Settings, what: str, changes: Sequence[str]) -> None:
    if changes:
        path = Path(settings.model_path) / STATE_FILE
        logger.warning("%s is resumed with other %s than before: %s", path, what, ", ".join(changes))


_BAR = ("best_f", "best_mae", "lowest_mae", "last_f", "patience_count")
"""What a progress remembers of the figures of former validations."""


def _adapt_to_datasets(state: dict[str, Any], run: Run) -> None:
    """Log the data sets that differ from those of a state; forget its best figures if others are validated on now."""
    before = state.get("datasets")
    if before is None:  # written by an earlier version
        return
    changed = [key for key, sets in run.datasets.items() if sets != before[key]]
    _log_changes(
        run.settings, "data sets", [f"{key} {_listed(before[key])} -> {_listed(run.datasets[key])}" for key in changed]
    )
    if "valid_datasets" in changed and state["progress"]["best_f"] >= 0:
        logger.warning(
            "the best validation so far (max F %.4f) was on other data sets: the next one counts as the best, and %s "
            "is replaced then",
            state["progress"]["best_f"],
            SegmentationTask.weights_file if state["phase"] == SegmentationTask.name else GTEncoderTask.weights_file,
        )
        state["progress"] |= {key: getattr(Progress(), key) for key in _BAR}


def _listed(sets: Sequence[Sequence[Any]]) -> str:
    return " + ".join(f"{name} ({number} samples)" for name, number in sets)


def _trained_gt_encoder(run: Run, state: dict[str, Any] | None) -> tuple[ISNetGTEncoder, Progress | None]:
    """Return the trained GT encoder: given, restored, or trained now (phase 1).

    Returns:
        The encoder, and its progress if its training was interrupted or out of time, else None.
    """
    encoder = ISNetGTEncoder()
    if run.settings.gt_encoder_model:
        load_weights(encoder, run.settings.gt_encoder_model)
    elif state and state["phase"] == SegmentationTask.name and state["gt_encoder"]:
        assign_weights(encoder, state["gt_encoder"], run.folder / STATE_FILE)
    else:
        resume = state if state and state["phase"] == GTEncoderTask.name else None
        if resume:
            assign_weights(encoder, resume["model"], run.folder / STATE_FILE)
        logger.info(
            "phase 1 trains the GT encoder until its max F is above %g (gt_encoder_stop_f) or for gt_encoder_max_ite "
            "iterations; max_ite is that of phase 2",
            run.settings.gt_encoder_stop_f,
        )
        progress = fit(GTEncoderTask(encoder, run.settings), run, resume)
        if progress.unfinished:
            return encoder, progress
        load_weights(encoder, run.folder / GTEncoderTask.weights_file)
    return encoder, None


# --- validation and inference ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """The result of modes ``valid`` and ``inference``."""

    scores: list[Scores]
    """Of the data sets with ground truth."""
    problems: list[str]
    """What kept images from being predicted or scored; each names its file."""


class _SkippingDataset(Dataset):
    """A validation data set in which the message of the error takes the place of a sample that cannot be read."""

    def __init__(self, dataset: ValidDataset) -> None:
        self.dataset, self.name = dataset, dataset.name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> ValidItem | str:
        try:
            return self.dataset[index]
        except (ImageError, BoxError) as error:
            return str(error)


def _collate_readable(items: list[ValidItem | str]) -> tuple[ValidBatch | None, list[str]]:
    readable = [item for item in items if not isinstance(item, str)]
    return collate_valid(readable) if readable else None, [item for item in items if isinstance(item, str)]


class _SkippingLoader:
    """Yields the batches of a loader without the samples that cannot be read, and collects the errors of these.

    Of several processes, each gets its share.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.dataset = _SkippingDataset(loader.dataset)
        self.problems: list[str] = []
        self._loader = DataLoader(
            self.dataset,
            batch_size=loader.batch_size,
            sampler=distributed.share(len(self.dataset)),
            num_workers=loader.num_workers,
            collate_fn=_collate_readable,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
        )

    def __iter__(self) -> Iterator[ValidBatch]:
        for batch, problems in self._loader:
            self.problems += problems
            if batch is not None:
                yield batch


def evaluate(session: Session, datasets: Datasets) -> Evaluation:
    """Run the network on data sets: score and optionally write maps (mode ``valid``), or only write maps.

    An image that cannot be read is logged and skipped. Collective: each process predicts and scores its share of the
    images, and all return the result.

    Args:
        session: Of mode ``valid`` or ``inference``; its ``restore_model`` is loaded.
        datasets: The data sets; those without ground truth need ``valid_out_dir``.

    Raises:
        UserError: If a setting, data set or checkpoint cannot be used, or scoring cannot continue.
    """
    settings = session.settings
    _check_datasets(datasets, "valid_datasets")
    _check_maps(datasets, settings.valid_out_dir)
    if settings.mode == "inference":
        datasets = [{**entry, "gt_dir": ""} for entry in datasets]
    elif MEAN in [entry.get("name") for entry in datasets]:
        raise DatasetError(f"a data set is named {MEAN!r}, like the mean over all data sets; rename it")
    if settings.check:
        session.require_usable([], datasets)
    metadata = load_weights(session.model, settings.restore_model, settings.mask_skip_logit, settings.box_gain)
    trained_at = tuple(metadata.get("input_size") or settings.input_size)
    if trained_at != settings.input_size:
        logger.warning(
            "%s was trained at %s (height, width) and runs at %s; cache_size and input_size set the size",
            *(settings.restore_model, list(trained_at), list(settings.input_size)),
        )
    session.model.to(session.device, memory_format=torch.channels_last)
    task = SegmentationTask(session.model, None, settings)
    loaders = session.valid_loaders(datasets, need_gt=False)
    for data in (loader.dataset.dataset for loader in loaders):
        if not data.has_gt and not settings.valid_out_dir:
            raise HyparError(
                f"hypar['valid_out_dir']: is empty, but data set {data.name!r} has no ground truth to score against; "
                "name a folder for its maps"
            )
    scores, problems = [], []
    with Scorer(settings.metrics, session.workers) as scorer:
        for loader in loaders:
            with _explained(settings, loader.dataset.dataset.name):
                found, failed = _evaluate_one(session, task, loader, scorer)
            scores.append(found)
            problems += failed
    return Evaluation([found for found in scores if found.images], problems)


@contextmanager
def _explained(settings: Settings, name: str) -> Iterator[None]:
    """Replace errors for want of memory, and those of processes that load data, by a ScoringError that names a remedy.

    Args:
        settings: The settings of the run.
        name: The name of the data set.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        lost = isinstance(error, UserError) or distributed.is_lost(error)
        remedy = None if lost else find_remedy(error, settings, validation=True)
        if remedy is None:
            raise
        raise ScoringError(f"data set {name!r}: {remedy}") from error


def _evaluate_one(
    session: Session, task: SegmentationTask, loader: DataLoader, scorer: Scorer
) -> tuple[Scores, list[str]]:
    """Predict the maps of one data set; score those with ground truth in the meantime. Return scores and problems."""
    settings = session.settings
    method = Path(settings.restore_model).stem
    readable = _SkippingLoader(loader)
    scores = Scores(readable.dataset.name, method, settings.metrics)
    maps = predict_maps(task, readable, session.device, session.dtype, settings.valid_out_dir, passes=settings.passes)
    jobs = (Job(image, gt.numpy(), {method: alpha.cpu().numpy()}) for image, alpha, gt in maps if gt is not None)
    # by its number: the outcome of each image of the share that has ground truth and could be read
    numbers = {sample.name: number for number, sample in enumerate(loader.dataset.dataset.samples)}
    outcomes = {numbers[outcome.name]: outcome for outcome in scorer.measure(jobs)}
    share = [outcomes.get(number) for number in distributed.share(len(numbers))]
    problems = []
    for outcome in filter(None, distributed.gather_shares(share)):
        problems += outcome.problems
        if method in outcome.measured:
            scores.add(outcome.name, outcome.measured[method])
    problems += distributed.gather_lists(readable.problems)
    for problem in problems:
        logger.error("%s", problem)
    return scores, problems
