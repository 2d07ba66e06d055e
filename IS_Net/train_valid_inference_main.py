"""Train, validate or run the second stage of DIS-SAM.

Choose the data sets, edit ``hypar``, and run ``python train_valid_inference_main.py``; or leave the file as it is and
give settings as key=value:

    python IS_Net/train_valid_inference_main.py mode=valid restore_model=best.safetensors valid_datasets=dataset_te1
    dis-sam train train_datasets=data/mine/train valid_datasets=data/mine/valid cache_size=512
    torchrun --nproc-per-node 4 IS_Net/train_valid_inference_main.py batch_size_train=12

``train_datasets`` and ``valid_datasets`` are names from datalist.py or folders that hold im/ (and gt/, mask/),
separated by commas; FOLDER:SUB takes the coarse masks from FOLDER/SUB instead of FOLDER/mask.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from IS_Net.allocator import reuse_freed_memory
from IS_Net.command_line import DONE, FAILED, INTERRUPTED, TERMINATED, print_error, print_text, run_command
from IS_Net.datalist import dataset_tr, dataset_vd, find_datasets
from IS_Net.hypar import Settings, describe_settings, override, parse_assignments
from IS_Net.machine import launched_processes

if TYPE_CHECKING:
    from IS_Net.engine import Metrics, Progress
    from IS_Net.phases import Evaluation

# --- step 1: the data sets, from datalist.py ---
train_datasets = [dataset_tr]
valid_datasets = [dataset_vd]

# --- step 2: the settings; hypar.py has all keys ---
hypar: dict[str, Any] = {
    "mode": "train",  # train | valid | inference
    "interm_sup": True,  # intermediate supervision: train a GT encoder first and match its features
    "model_path": "../saved_models/your_model_weights",  # checkpoints, metrics.csv, TensorBoard logs
    "restore_model": "",  # last.pt resumes a run; any other checkpoint only initializes the weights
    "gt_encoder_model": "",  # trained GT encoder; skips phase 1
    "valid_out_dir": "",  # predicted maps: valid_out_dir/DATA_SET/NAME.png
    "model": 4,  # input channels: 3 image | 4 image + mask | 5 image + mask + box; or an ISNetDIS
    "model_digit": "auto",  # full (float32) | half (16-bit autocast) | auto
    "seed": 0,
    "cache_size": [1024, 1024],  # (height, width) of the cached images
    "cache_boost_train": False,  # keep the training cache in memory
    "cache_boost_valid": False,
    "input_size": [1024, 1024],  # (height, width) of the network's input
    "crop_size": [1024, 1024],  # (height, width) of random crops of the input
    "random_flip_h": True,
    "random_flip_v": True,
    "batch_size_train": 6,
    "batch_size_valid": 1,
    "model_save_fre": 2000,  # iterations between validations
    "early_stop": 20,  # patience: validations without improvement before training ends
    "start_ite": 0,
    "max_ite": 10_000_000,
    "max_epoch_num": 1_000_000,
}


def main(
    train_datasets: Sequence[dict[str, str]], valid_datasets: Sequence[dict[str, str]], hypar: dict[str, Any]
) -> Progress | dict[str, Metrics]:
    """Run the mode that ``hypar`` sets.

    Args:
        train_datasets: Entries as in datalist.py; only used in mode ``train``.
        valid_datasets: Entries as in datalist.py.
        hypar: Any of the fields of :class:`IS_Net.hypar.Settings`.

    Returns:
        Mode ``train``: the progress of the last phase. Other modes: for each data set with ground truth, by its name,
        the figures by the keys of ``IS_Net.metrics.suite.FIGURES``.

    Raises:
        UserError: If something cannot be used; the message names it and the remedy.
    """
    with _joined():
        settings = Settings.from_hypar(hypar)
        result = _run(train_datasets, valid_datasets, settings)
    return result if settings.mode == "train" else {one.data_set: one.figures() for one in result.scores}


def _joined() -> AbstractContextManager:
    """Return the context of the processes that torchrun has started; without torchrun, one in which nothing happens."""
    if launched_processes() == 1:
        return nullcontext()
    from IS_Net import distributed  # it imports PyTorch, which the messages of wrong settings need not wait for

    return distributed.joined()


def _run(
    train_datasets: Sequence[dict[str, str]], valid_datasets: Sequence[dict[str, str]], settings: Settings
) -> Progress | Evaluation:
    from IS_Net import phases, report  # they import PyTorch, which --help does not need

    session = phases.Session(settings)
    if session.device.type == "cpu":
        reuse_freed_memory()
    for key in ("model_path", "restore_model", "gt_encoder_model", "valid_out_dir"):
        if path := getattr(settings, key):
            print_text(f"{key}: {path}")
    if settings.mode == "train":
        progress = phases.train(session, train_datasets, valid_datasets)
        best = f"; best max F {progress.best_f:.4f}, MAE {progress.best_mae:.4f}" if progress.best_f >= 0 else ""
        print_text(f"ended at iteration {progress.iteration} ({progress.done}){best}")
        return progress
    evaluation = phases.evaluate(session, valid_datasets)
    if settings.valid_out_dir:
        print_text(f"maps are in {settings.valid_out_dir}")
    if evaluation.scores:
        print_text(report.text_table(evaluation.scores, every=settings.metrics != "all"))
    return evaluation


def command_line(arguments: Sequence[str]) -> int:
    """Run with ``key=value`` arguments in addition to the settings of this file.

    Returns:
        0: done. 1: images could not be read, or the training failed. 2: the run could not start. 130: interrupted
        by Ctrl-C; 143: by SIGTERM; a training has been saved.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print_text(f"{__doc__}\nSettings and their defaults:\n{describe_settings()}")
        return DONE
    return run_command(lambda: _run_command(arguments))


def _run_command(arguments: Sequence[str]) -> int:
    with _joined():
        given = parse_assignments(arguments, extra=("train_datasets", "valid_datasets"))
        train, valid = given.pop("train_datasets", None), given.pop("valid_datasets", None)
        train = train_datasets if train is None else find_datasets(train, cache=True)
        valid = valid_datasets if valid is None else find_datasets(valid, cache=False)
        settings = Settings.from_hypar(override(hypar, given))
        from tqdm.contrib.logging import logging_redirect_tqdm

        with logging_redirect_tqdm():
            result = _run(train, valid, settings)
        return _end(result, settings.mode)


def _end(result: Progress | Evaluation, mode: str) -> int:
    """Print what did not end as it should have, in the main process, and return the exit code."""
    from IS_Net.distributed import is_main

    if mode == "train":
        if not result.interrupted:
            return DONE
        if is_main():
            print_error(f"{result.done}; restore_model=last.pt resumes the training", prefix="")
        return TERMINATED if result.done == "terminated" else INTERRUPTED
    if result.problems and is_main():
        print_error(f"{len(result.problems)} images failed (see above)")
    return FAILED if result.problems else DONE


if __name__ == "__main__":
    sys.exit(command_line(sys.argv[1:]))
