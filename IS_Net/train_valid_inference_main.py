"""Train, validate or run DIS-SAM's second stage.

Choose the data sets, edit ``hypar``, and run ``python train_valid_inference_main.py``; or leave the file as it is and
give the same settings as key=value:

    python IS_Net/train_valid_inference_main.py mode=valid restore_model=best.safetensors valid_datasets=dataset_te1

``train_datasets`` and ``valid_datasets`` take names from datalist.py or folders that hold im/ (and gt/, mask/),
separated by commas; FOLDER:SUB takes the coarse masks from FOLDER/SUB instead of FOLDER/mask. What each key means, and
the further ones: hypar.py.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from IS_Net import datalist
from IS_Net.cache import DISDataset
from IS_Net.checkpoint import assign_weights, load_state, load_weights
from IS_Net.data_loader import Synthesis, TrainDataset, ValidDataset, train_loader, valid_loader
from IS_Net.datalist import dataset_tr, dataset_vd
from IS_Net.device import autocast_dtype, available_cores, pick_device
from IS_Net.engine import STATE_FILE, Metrics, Progress, Run, fit, predict_maps
from IS_Net.errors import (
    CheckpointError,
    DatasetError,
    DeviceError,
    HyparError,
    ImageError,
    ScoringError,
    TrainingError,
)
from IS_Net.hypar import check, parse_assignments
from IS_Net.models import ISNetDIS, ISNetGTEncoder
from IS_Net.preprocess import IMAGE_CHANNELS
from IS_Net.report import MEAN, Scores, text_table
from IS_Net.run_log import RunLog
from IS_Net.scoring import Job, Scorer
from IS_Net.tasks import GTEncoderTask, SegmentationTask

# --- step 1: the data sets, from datalist.py ---
train_datasets = [dataset_tr]
valid_datasets = [dataset_vd]

# --- step 2: the settings ---
hypar: dict[str, Any] = {
    "mode": "train",  # train | valid | inference
    "interm_sup": True,  # train a ground-truth encoder first, and supervise the features with it
    "model_path": "../saved_models/your_model_weights",  # checkpoints, metrics.csv, TensorBoard
    "restore_model": "",  # last.pt goes on where a run stopped; any other checkpoint gives its weights
    "gt_encoder_model": "",  # a trained ground-truth encoder, to skip its training
    "valid_out_dir": "",  # where maps are written: <valid_out_dir>/<data set>/<name>.png
    "model": 4,  # 3: image, 4: image + mask, 5: image + mask + box; or an ISNetDIS
    "model_digit": "auto",  # full (fp32) | half (16-bit) | auto
    "seed": 0,
    "cache_size": [1024, 1024],  # (height, width) that is stored
    "cache_boost_train": False,  # hold the training cache in memory
    "cache_boost_valid": False,
    "input_size": [1024, 1024],  # (height, width) that the network sees
    "crop_size": [1024, 1024],  # a random crop of it, where smaller
    "random_flip_h": True,
    "random_flip_v": True,
    "batch_size_train": 6,
    "batch_size_valid": 1,
    "model_save_fre": 2000,  # iterations between two validations
    "early_stop": 20,  # validations without improvement before the run stops
    "start_ite": 0,
    "max_ite": 10_000_000,
    "max_epoch_num": 1_000_000,
}

ERRORS = (HyparError, DatasetError, ImageError, CheckpointError, DeviceError, TrainingError, ScoringError)
"""What is the user's to mend, and is told without a traceback."""


class _Session:
    """The settings, checked, with device, network and data as they follow from them."""

    def __init__(self, hypar: dict[str, Any]) -> None:
        self.settings = check(hypar)
        torch.manual_seed(self.settings["seed"])
        self.device = pick_device(self.settings["device"])
        self.dtype = autocast_dtype(self.device, self.settings["model_digit"])
        model = self.settings["model"]
        self.model: ISNetDIS = ISNetDIS(model) if isinstance(model, int) else model
        self.pin = self.device.type == "cuda"
        self.workers = min(self.settings["workers"], available_cores())  # more would only wait for each other

    def data(self, dataset: dict[str, str], need_gt: bool, preload: bool, in_ch: int | None = None) -> DISDataset:
        sizes = self.settings["cache_size"], self.settings["input_size"]
        return DISDataset(dataset, in_ch or self.model.in_ch, *sizes, need_gt=need_gt, preload=preload)

    def valid_loaders(self, datasets: Sequence[dict[str, str]], need_gt: bool) -> list:
        batch = self.settings["batch_size_valid"]
        sets = [self.data(entry, need_gt, self.settings["cache_boost_valid"]) for entry in datasets]
        return [valid_loader(ValidDataset(data), batch, self.workers, self.pin) for data in sets]

    def run(self, train: Sequence[dict[str, str]], valid: Sequence[dict[str, str]]) -> Run:
        settings = self.settings
        preload, in_ch = settings["cache_boost_train"], self.model.in_ch
        stored = IMAGE_CHANNELS if settings["simulate_mask"] == 1 else in_ch  # no mask file is looked at then
        sets = [self.data(entry, True, preload, stored) for entry in train]
        behind = None
        if settings["copy_paste"] and settings["backgrounds"]:
            entry = datalist.photographs(settings["backgrounds"], cache=True)
            behind = self.data(entry, False, preload, IMAGE_CHANNELS)
        synthesis = Synthesis(settings["copy_paste"], settings["simulate_mask"], behind)
        flips = settings["random_flip_h"], settings["random_flip_v"]
        data = TrainDataset(sets, settings["seed"], *flips, tuple(settings["crop_size"]), in_ch, synthesis)

        def make_loader(start: int) -> Any:
            return train_loader(data, settings["batch_size_train"], self.workers, start, self.pin)

        log = RunLog(Path(settings["model_path"]))
        loaders = self.valid_loaders(valid, need_gt=True)
        return Run(settings, self.device, self.dtype, loaders, make_loader, log, self.model.in_ch)


def _train(session: _Session, train: Sequence[dict[str, str]], valid: Sequence[dict[str, str]]) -> Progress:
    """Train both phases, or what is left of them; return the progress of the last one."""
    settings, folder = session.settings, Path(session.settings["model_path"])
    restore = Path(settings["restore_model"]) if settings["restore_model"] else None
    state = load_state(restore) if restore and restore.name == STATE_FILE else None
    if state:
        _check_state(state, restore, session)
    held = [name for name in (STATE_FILE, SegmentationTask.weights_file) if (folder / name).is_file()]
    if held and not state:
        raise HyparError(
            f"hypar['model_path']: {folder} already holds a training ({', '.join(held)}), which this one would "
            f"overwrite; go on with restore_model={STATE_FILE}, choose another model_path, or move the folder away"
        )
    if state:
        # phase 2, where it has not begun, still starts from the weights that the run was given at first
        settings["restore_model"] = state["settings"]["restore_model"]
    if settings["restore_model"] and not (state and state["phase"] == SegmentationTask.name):
        load_weights(session.model, settings["restore_model"], settings["mask_skip_logit"])
    run = session.run(train, valid)
    try:
        teacher = None
        if settings["interm_sup"]:
            teacher, ended = _gt_encoder(run, state)
            if ended is not None:
                return ended
        resume = state if state and state["phase"] == SegmentationTask.name else None
        if resume:
            assign_weights(session.model, resume["model"], restore)
        return fit(SegmentationTask(session.model, teacher, settings), run, resume)
    finally:
        run.log.close()


def _check_state(state: dict[str, Any], path: Path, session: _Session) -> None:
    """Refuse to go on with a state that cannot be gone on with here; say aloud which settings are new to it."""
    now, then = {**session.settings, "model": session.model.in_ch}, state["settings"]
    if path.parent != Path(now["model_path"]):
        raise HyparError(
            f"hypar['restore_model']: {path} is resumed in its own folder; set model_path to {path.parent}, or give "
            "best.safetensors of that folder to start a new run from its weights"
        )
    if now["model"] != then["model"]:
        raise CheckpointError(
            f"{path}: is of a network of {then['model']} input channels, hypar['model'] has {now['model']}; set it to "
            f"{then['model']}"
        )
    irrelevant = ("restore_model", "model_path", "device", "workers", "valid_out_dir", "metrics")
    changed = [
        f"{key} {then.get(key)} -> {now[key]}" for key in now if key not in irrelevant and now[key] != then.get(key)
    ]
    if changed:
        logging.warning("%s goes on with other settings than before: %s", path, ", ".join(changed))


def _gt_encoder(run: Run, state: dict[str, Any] | None) -> tuple[ISNetGTEncoder, Progress | None]:
    """Return the trained ground-truth encoder: given, restored, or trained now (phase 1).

    Its progress comes along only if its training was interrupted.
    """
    encoder = ISNetGTEncoder()
    if run.settings["gt_encoder_model"]:
        load_weights(encoder, run.settings["gt_encoder_model"])
    elif state and state["phase"] == SegmentationTask.name and state["teacher"]:
        assign_weights(encoder, state["teacher"], run.folder / STATE_FILE)
    else:
        resume = state if state and state["phase"] == GTEncoderTask.name else None
        if resume:
            assign_weights(encoder, resume["model"], run.folder / STATE_FILE)
        progress = fit(GTEncoderTask(encoder, run.settings), run, resume)
        if progress.done == "interrupted":
            return encoder, progress
        load_weights(encoder, run.folder / GTEncoderTask.weights_file)
    return encoder, None


def _evaluate(session: _Session, valid: Sequence[dict[str, str]]) -> list[Scores]:
    """Run the network on data sets; return the scores of those with a ground truth."""
    settings = session.settings
    facts = load_weights(session.model, settings["restore_model"], settings["mask_skip_logit"])
    if facts.get("input_size", settings["input_size"]) != settings["input_size"]:
        logging.warning(
            "%s was trained at %s (height, width), and is run at %s; cache_size and input_size set that",
            *(settings["restore_model"], facts["input_size"], settings["input_size"]),
        )
    session.model.to(session.device, memory_format=torch.channels_last)
    task = SegmentationTask(session.model, None, settings)
    if settings["mode"] == "inference":
        valid = [{**entry, "gt_dir": ""} for entry in valid]
    elif MEAN in [entry.get("name") for entry in valid]:
        raise DatasetError(f"a data set is named {MEAN!r}, as the mean of all of them is; give it another name")
    loaders = session.valid_loaders(valid, need_gt=False)
    for data in (loader.dataset.dataset for loader in loaders):
        if not data.has_gt and not settings["valid_out_dir"]:
            raise HyparError(
                f"hypar['valid_out_dir']: is empty, and data set {data.name!r} has no ground truth to score against; "
                "name a folder for the maps"
            )
    with Scorer(settings["metrics"], session.workers) as scorer:
        results = [_score(session, task, loader, scorer) for loader in loaders]
    return [scores for scores in results if scores.images]


def _score(session: _Session, task: SegmentationTask, loader: Any, scorer: Scorer) -> Scores:
    """Predict one data set's maps, and score those that have a ground truth while the device goes on."""
    settings, name = session.settings, loader.dataset.name
    maps = predict_maps(task, loader, session.device, session.dtype, settings["valid_out_dir"])
    method = Path(settings["restore_model"]).stem
    scores = Scores(name, method, settings["metrics"])
    jobs = (Job(image, gt.numpy(), {method: alpha.cpu().numpy()}) for image, alpha, gt in maps if gt is not None)
    for outcome in scorer.measure(jobs):
        scores.add(outcome.name, outcome.measured[method])
    return scores


def main(
    train_datasets: Sequence[dict[str, str]], valid_datasets: Sequence[dict[str, str]], hypar: dict[str, Any]
) -> Progress | dict[str, Metrics]:
    """Do what ``hypar["mode"]`` says.

    Args:
        train_datasets: As in datalist.py; looked at in mode ``train`` only.
        valid_datasets: As in datalist.py.
        hypar: Any of the keys of ``IS_Net.hypar.DEFAULTS``.

    Returns:
        Mode ``train``: the progress of the last phase. Else: the figures of each data set with ground truth, by its
        name and the keys of ``IS_Net.metrics.suite.FIGURES``.

    Raises:
        HyparError, DatasetError, ImageError, CheckpointError, DeviceError, TrainingError, ScoringError: What is wrong,
            and how to mend it.
    """
    session = _Session(hypar)
    for key in ("model_path", "restore_model", "gt_encoder_model", "valid_out_dir"):
        if session.settings[key]:
            print(f"{key}: {session.settings[key]}")
    # to train on the same set twice is to see it twice as often
    once = [entry for place, entry in enumerate(train_datasets) if entry not in train_datasets[:place]]
    for datasets in (once, valid_datasets):
        names = [entry.get("name") for entry in datasets]
        if len(set(names)) < len(names):
            raise DatasetError(
                f"two data sets share a name: {', '.join(map(str, names))}; give each its own, in datalist.py"
            )
    if not valid_datasets or (session.settings["mode"] == "train" and not train_datasets):
        raise DatasetError("no data sets were given; choose some from datalist.py")
    if session.settings["mode"] == "train":
        progress = _train(session, train_datasets, valid_datasets)
        best = f"; best max F {progress.best_f:.4f}, MAE {progress.best_mae:.4f}" if progress.best_f >= 0 else ""
        print(f"ended at iteration {progress.iteration} ({progress.done}){best}")
        return progress
    results = _evaluate(session, valid_datasets)
    if session.settings["valid_out_dir"]:
        print(f"maps are in {session.settings['valid_out_dir']}")
    if results:
        print(text_table(results))
    return {scores.data_set: scores.figures() for scores in results}


def _datasets(names: str, cache: bool) -> list[dict[str, str]]:
    """Turn ``dataset_te1,path/to/folder`` into data set entries; folders get a cache where ``cache`` is set."""
    known, entries = datalist.named(), []
    for name in filter(None, map(str.strip, names.split(","))):
        folder, _, masks = name.rpartition(":")
        if name in known:
            entries.append(known[name])
        elif Path(name).is_dir():
            entries.append(datalist.from_folder(name, cache))
        elif folder and (Path(folder) / masks).is_dir():
            entries.append(datalist.from_folder(folder, cache, masks))
        else:
            raise DatasetError(f"{name!r} is neither a data set of datalist.py ({', '.join(known)}) nor a folder")
    return entries


def command_line(arguments: Sequence[str]) -> int:
    """Run with key=value arguments on top of this file's settings; return the exit code.

    0: done. 1: an error, told in one message. 130: interrupted, everything saved.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(__doc__)
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        given = parse_assignments(arguments, extra=("train_datasets", "valid_datasets"))
        train, valid = given.pop("train_datasets", None), given.pop("valid_datasets", None)
        if "cache_size" in given:  # a smaller input follows on the command line, unless it is given there too
            given = {"input_size": [], "crop_size": [], **given}
        elif "input_size" in given:
            given = {"crop_size": [], **given}
        with logging_redirect_tqdm():
            result = main(
                train_datasets if train is None else _datasets(train, cache=True),
                valid_datasets if valid is None else _datasets(valid, cache=False),
                {**hypar, **given},
            )
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 130 if isinstance(result, Progress) and result.done == "interrupted" else 0


if __name__ == "__main__":
    sys.exit(command_line(sys.argv[1:]))
