"""The settings of a run: their defaults, the check of a user's own, and the command line's key=value form."""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from IS_Net.errors import HyparError
from IS_Net.metric_names import choose
from IS_Net.paths import resolve, settings_base

DEFAULTS: dict[str, Any] = {
    # what to do
    "mode": "train",  # train | valid (score, and write maps where valid_out_dir is set) | inference (maps only)
    "metrics": "all",  # of mode valid: any of f, wf, mae, s, e, hce, iou, biou
    "interm_sup": True,  # supervise the features with a ground-truth encoder (phase 1 trains it)
    "seed": 0,
    # where things are; "" is none
    "valid_out_dir": "",  # maps of validation and inference: <valid_out_dir>/<data set>/<name>.png
    "model_path": "../saved_models/your_model_weights",  # checkpoints, metrics log, TensorBoard
    "restore_model": "",  # last.pt resumes; any other file gives its weights only
    "gt_encoder_model": "",  # a trained ground-truth encoder: phase 1 is skipped
    # the network
    "model": 4,  # an ISNetDIS, or its input channels: 3 image, 4 image + mask, 5 image + mask + box
    "model_digit": "auto",  # full: fp32 | half: 16-bit autocast | auto: half where the device is faster at it
    "device": "auto",  # auto | cpu | cuda | cuda:N | mps
    "mask_skip_logit": 0.0,  # weights widened from 3 channels: carry the mask to the side outputs with this logit; 0: zeros
    # sizes, (height, width)
    "cache_size": [1024, 1024],  # what is stored
    "input_size": [],  # what the network sees; [] is cache_size
    "crop_size": [],  # training: a random crop of the input; [] is all of it
    # data
    "cache_boost_train": False,  # hold the whole training cache in memory
    "cache_boost_valid": False,  # likewise the validation caches
    "random_flip_h": True,  # p = 0.5 each, independently: the published p = 0.25 of H, V and both
    "random_flip_v": True,
    "copy_paste": 0.0,  # share of training samples that are composed: objects of the set in other photographs
    "backgrounds": "",  # a folder of photographs to compose in front of; "" takes the training images
    "simulate_mask": 0.0,  # share of coarse masks that are simulated from the ground truth; 1.0 needs no mask files
    "workers": 4,  # processes that load data, and in mode valid as many that score; 0: the main process does
    # the run's length
    "start_ite": 0,  # the number the iterations start from, where weights were restored
    "max_ite": 10_000_000,
    "max_epoch_num": 1_000_000,
    "early_stop": 20,  # stop after so many validations in which neither max F nor MAE improved
    "model_save_fre": 2000,  # validate and save every so many iterations
    "batch_size_train": 6,
    "batch_size_valid": 1,
    "accumulation": 1,  # batches whose gradients make one iteration
    # the optimizer (AdamW) and the losses' weights
    "lr": 4e-5,
    "lr_decay": "none",  # none | cosine (phase 2: to 0 at max_ite)
    "lr_stem_factor": 1.0,  # times lr for the first convolution, which sees the mask
    "ema": 0.0,  # phase 2: validate and keep a moving average of the weights; this share of it stays each iteration
    "freeze_bn": False,  # phase 2: BatchNorm as in eval mode, for small batches and imported (folded) weights
    "weight_decay": 0.0,
    "bce_weight": 20.0,
    "iou_weight": 0.5,
    "edge_weight": 0.0,  # phase 2: the BCE minds edges and thin parts more; F3Net's factor is 5
    "feature_weight": 1.0,
    "orthogonal_weight": 1e-8,
    # phase 1
    "gt_encoder_lr": 1e-4,
    "gt_encoder_stop_f": 0.99,  # max F at which the ground-truth encoder is good enough
    "gt_encoder_max_ite": 10_000_000,
}

CHOICES = {
    "mode": ("train", "valid", "inference"),
    "model_digit": ("auto", "full", "half"),
    "lr_decay": ("none", "cosine"),
    "model": (3, 4, 5),
}
SIZES = ("cache_size", "input_size", "crop_size")
SHARES = ("copy_paste", "simulate_mask", "ema")
PATHS = ("valid_out_dir", "model_path", "restore_model", "gt_encoder_model", "backgrounds")
_AT_LEAST_ONE = (
    "model_save_fre",
    "early_stop",
    "batch_size_train",
    "batch_size_valid",
    "accumulation",
    "max_epoch_num",
)

MIN_SIZE = 128
"""Below it the deepest maps of the networks shrink to single pixels, which BatchNorm cannot train on."""


def _size(key: str, value: Any) -> list[int]:
    if value == DEFAULTS[key] == []:
        return []
    pair = [value, value] if isinstance(value, int) and not isinstance(value, bool) else value
    if (
        isinstance(pair, str)
        or not isinstance(pair, Sequence)
        or len(pair) != 2
        or not all(isinstance(v, int) and not isinstance(v, bool) and v >= MIN_SIZE for v in pair)
    ):
        raise HyparError(f"hypar[{key!r}]: expected [height, width], integers of at least {MIN_SIZE}, found {value!r}")
    return list(pair)


def _value(key: str, value: Any) -> Any:
    """Check one setting against its default's type, and return it in that type."""
    default = DEFAULTS[key]
    if key in SIZES:
        return _size(key, value)
    if key == "model" and isinstance(value, nn.Module):
        if not (hasattr(value, "predict_logits") and getattr(value, "in_ch", None) in CHOICES["model"]):
            raise HyparError(
                f"hypar['model']: expected an ISNetDIS of 3, 4 or 5 channels, found {type(value).__name__}"
            )
        return value
    if isinstance(default, bool):
        if value not in (0, 1):  # the published code writes flips as 1 and 0
            raise HyparError(f"hypar[{key!r}]: expected True or False, found {value!r}")
        return bool(value)
    if isinstance(value, Path) and key in PATHS:
        value = str(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        wanted = type(default).__name__
        raise HyparError(
            f"hypar[{key!r}]: expected {wanted} such as {default!r}, found {type(value).__name__} {value!r}"
        )
    if key in CHOICES and value not in CHOICES[key]:
        raise HyparError(f"hypar[{key!r}]: expected one of {', '.join(map(str, CHOICES[key]))}, found {value!r}")
    if key == "metrics":
        try:
            choose(value)
        except ValueError as error:
            raise HyparError(f"hypar['metrics']: {error}") from error
    least = 1 if key in _AT_LEAST_ONE else 0
    if isinstance(value, (int, float)) and not least <= value < math.inf:
        raise HyparError(f"hypar[{key!r}]: expected a finite number of at least {least}, found {value!r}")
    if key in SHARES and value > 1:
        raise HyparError(f"hypar[{key!r}]: expected a share of 0 to 1, found {value!r}")
    return value


def _nearest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"


def check(hypar: Mapping[str, Any]) -> dict[str, Any]:
    """Fill a user's settings up with the defaults, and check them.

    Args:
        hypar: Any of the keys of ``DEFAULTS``.

    Returns:
        All keys of ``DEFAULTS``; paths absolute (relative ones start at ``IS_Net/``), sizes as [height, width].

    Raises:
        HyparError: If a key is unknown (the message names the nearest one), or a value does not fit its key.
    """
    for key in hypar:
        if key not in DEFAULTS:
            raise HyparError(f"hypar has no key {key!r}{_nearest(key, list(DEFAULTS))}")
    settings = {key: _value(key, hypar.get(key, default)) for key, default in DEFAULTS.items()}
    settings["input_size"] = settings["input_size"] or settings["cache_size"]
    settings["crop_size"] = settings["crop_size"] or settings["input_size"]
    if any(crop > whole for crop, whole in zip(settings["crop_size"], settings["input_size"], strict=True)):
        raise HyparError(
            f"hypar['crop_size']: {settings['crop_size']} is larger than input_size {settings['input_size']}"
        )
    if settings["mode"] == "train" and not settings["model_path"]:
        raise HyparError("hypar['model_path']: is empty, but mode 'train' needs a folder for its checkpoints")
    if settings["mode"] == "inference" and not settings["valid_out_dir"]:
        raise HyparError("hypar['valid_out_dir']: is empty, but mode 'inference' needs a folder to write the maps to")
    if settings["mode"] != "train" and not settings["restore_model"]:
        raise HyparError(
            f"hypar['restore_model']: is empty, but mode {settings['mode']!r} needs weights; name a checkpoint"
        )
    if settings["lr_decay"] == "cosine" and settings["max_ite"] == DEFAULTS["max_ite"]:
        raise HyparError("hypar['lr_decay']: cosine falls to 0 at max_ite, which is not set; set it")
    for key in ("valid_out_dir", "model_path", "backgrounds"):
        if settings[key]:
            settings[key] = str(resolve(settings[key]))
    for key in ("restore_model", "gt_encoder_model"):
        if settings[key]:
            settings[key] = str(find_checkpoint(key, settings[key], settings["model_path"]))
    return settings


def find_checkpoint(key: str, name: str, model_path: str) -> Path:
    """Find a checkpoint: in ``model_path``, as the published code does, else as a path of its own.

    Raises:
        HyparError: If it is in neither place.
    """
    places = [resolve(name, Path(model_path or settings_base())), resolve(name)]
    for place in places:
        if place.is_file():
            return place
    looked = " nor ".join(dict.fromkeys(map(str, places)))
    raise HyparError(f"hypar[{key!r}]: no checkpoint {name!r}: there is neither {looked}")


def parse_assignments(arguments: Sequence[str], extra: Sequence[str] = ()) -> dict[str, Any]:
    """Read ``key=value`` arguments into settings, each by its default's type.

    Sizes are ``1024`` or ``1024,768`` (height, width); truth is ``True``, ``False``, ``1`` or ``0``. Relative
    paths start at the current folder, save a bare checkpoint name that is not there: it is looked for in
    ``model_path`` later.

    Args:
        arguments: Such as ``["mode=valid", "batch_size_train=4"]``.
        extra: Keys that are no settings and are returned as strings.

    Raises:
        HyparError: If an argument has no ``=``, an unknown key, or a value that does not fit.
    """
    settings: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise HyparError(f"expected key=value, found {argument!r}; for example mode=valid")
        if key in extra:
            settings[key] = text
            continue
        if key not in DEFAULTS:
            raise HyparError(f"there is no key {key!r}{_nearest(key, [*DEFAULTS, *extra])}")
        if key in PATHS:
            path = Path(text).expanduser()
            bare_name = key in ("restore_model", "gt_encoder_model") and not path.exists() and path.name == text
            settings[key] = text if not text or bare_name else str(path.resolve())
        elif isinstance(DEFAULTS[key], str):
            settings[key] = text
        else:
            try:
                value = ast.literal_eval(text.strip().capitalize() if isinstance(DEFAULTS[key], bool) else text)
            except (ValueError, SyntaxError, TypeError) as error:
                raise HyparError(f"{key}: cannot read {text!r}; expected a value such as {DEFAULTS[key]!r}") from error
            if isinstance(DEFAULTS[key], int) and isinstance(value, float) and value.is_integer():
                value = int(value)  # 1e6
            settings[key] = list(value) if isinstance(value, tuple) else value
    return settings
