"""The settings of a run: one table, and the two ways to give them (the ``hypar`` dict and ``key=value`` arguments).

This module does not import PyTorch, so that ``--help`` answers at once.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from IS_Net.errors import HyparError, did_you_mean
from IS_Net.metric_names import METRIC_NAMES, choose
from IS_Net.paths import resolve, settings_base

MIN_SIZE = 128
"""Smallest height and width of the network's input. Below it, the deepest feature maps shrink to single pixels, on
which BatchNorm cannot be trained."""
MAX_SIZE = 1 << 14
"""Largest height and width that a checkpoint may name for prediction; no memory holds what larger ones need."""

FOLDER, CHECKPOINT = "folder", "checkpoint"
"""Path rules of :func:`setting`."""

PROMPT_KEYS = "box_jitter", "drop_mask", "whole_frame", "own_mask", "window_share"
"""The settings that vary the prompts of training samples."""

NO_LIMIT = 10_000_000
"""Default of the limits that count iterations: in practice, none."""


@dataclass(frozen=True)
class Rule:
    """What a setting means and which values it takes. Its type is the type of its default."""

    comment: str
    choices: tuple[Any, ...] = ()
    minimum: float = 0
    maximum: float = math.inf
    path: str = ""


def setting(
    default: Any,
    comment: str,
    *,
    choices: tuple[Any, ...] = (),
    minimum: float = 0,
    maximum: float = math.inf,
    path: str = "",
) -> Any:
    """Declare a field of :class:`Settings`.

    Args:
        default: The default. Its type is the type of the setting; a tuple stands for a size, (height, width).
        comment: What the setting means, in one line.
        choices: The allowed values; empty allows all.
        minimum: Smallest allowed number.
        maximum: Largest allowed number.
        path: Empty if the setting is not a path; ``folder`` if it is, a relative one starting at
            :func:`IS_Net.paths.settings_base`; ``checkpoint`` if it is an existing file (:func:`find_checkpoint`).
    """
    return field(default=default, metadata={"rule": Rule(comment, choices, minimum, maximum, path)})


@dataclass(frozen=True)
class Settings:
    """All settings of a run. :meth:`from_hypar` builds checked ones; the defaults are the published recipe."""

    # what to do
    mode: str = setting(
        "train",
        "train | valid (score, and write maps if valid_out_dir is set) | inference (write maps)",
        choices=("train", "valid", "inference"),
    )
    metrics: str = setting("all", f"mode valid: metrics to compute: all, or some of {', '.join(METRIC_NAMES)}")
    interm_sup: bool = setting(True, "intermediate supervision: train a GT encoder first and match its features")
    seed: int = setting(0, "random seed of weights, shuffling and augmentation", maximum=2**63 - 1)

    # paths
    valid_out_dir: str = setting("", "folder of predicted maps: valid_out_dir/DATA_SET/NAME.png", path=FOLDER)
    model_path: str = setting(
        "../saved_models/your_model_weights", "folder of checkpoints, metrics.csv and TensorBoard logs", path=FOLDER
    )
    restore_model: str = setting(
        "", "last.pt resumes a run; any other checkpoint only initializes the weights", path=CHECKPOINT
    )
    gt_encoder_model: str = setting("", "trained GT encoder; skips phase 1", path=CHECKPOINT)

    resume: bool = setting(
        False, "train: continue from last.pt of model_path if there is one, for jobs that a cluster starts again"
    )

    # network
    model: Any = setting(  # noqa: RUF009 - a network or a number, not changed
        4, "input channels: 3 image | 4 image + mask | 5 image + mask + box; or an ISNetDIS", choices=(3, 4, 5)
    )
    model_digit: str = setting(
        "auto",
        "full (float32) | half (16-bit autocast) | auto (half if the device is faster with it)",
        choices=("auto", "full", "half"),
    )
    device: str = setting("auto", "auto | cpu | cuda | cuda:N | mps")
    compile: bool = setting(False, "phase 2: compile the network with torch.compile; takes minutes, then is faster")
    recompute: bool = setting(
        False, "training: keep fewer activations and compute them again in the backward pass: less memory, more time"
    )
    mask_skip_logit: float = setting(
        0.0, "3-channel weights get a mask skip connection with this logit; 0 adds zero weights"
    )
    box_gain: float = setting(
        0.0, "weights without a box channel get this multiple of the mask channel's weights for it; 0 adds zero weights"
    )

    # sizes: (height, width)
    cache_size: tuple[int, int] = setting((1024, 1024), "size of the cached images", minimum=MIN_SIZE)
    input_size: tuple[int, int] = setting((), "size of the network's input; empty is cache_size", minimum=MIN_SIZE)
    crop_size: tuple[int, int] = setting(
        (), "training: size of random crops of the input; empty is input_size", minimum=MIN_SIZE
    )

    # data
    cache_boost_train: bool = setting(False, "keep the training cache in memory")
    cache_boost_valid: bool = setting(False, "keep the validation caches in memory")
    random_flip_h: bool = setting(True, "horizontal flips with probability 0.5")
    random_flip_v: bool = setting(True, "vertical flips with probability 0.5, independent of horizontal ones")
    copy_paste: float = setting(0.0, "probability of copy-paste augmentation", maximum=1)
    backgrounds: str = setting("", "folder of copy-paste backgrounds; empty uses the training images", path=FOLDER)
    simulate_mask: float = setting(
        0.0, "probability of simulating the coarse mask from the GT; 1 needs no mask files", maximum=1
    )
    box_jitter: float = setting(
        0.0, "each side of a box moves by up to this share of the box's width or height", maximum=0.25
    )
    drop_mask: float = setting(
        0.0, "share of samples without a coarse mask: 5 channels get zeros, 4 the filled box", maximum=1
    )
    whole_frame: float = setting(
        0.0,
        "share of the samples without a mask whose box is the whole frame, if the target's box covers a quarter of it",
        maximum=1,
    )
    own_mask: float = setting(
        0.0, "share of samples whose coarse mask is the network's own alpha matte, from their prompt", maximum=1
    )
    window_share: float = setting(
        0.0,
        "share of samples that are windows of input_size at the scale of cache_size, with the alpha matte of the whole "
        "sample as their mask",
        maximum=1,
    )
    passes: int = setting(
        1, "modes valid and inference: forward passes, each with the last one's map as its coarse mask", minimum=1
    )
    check: bool = setting(False, "read all files of the data sets first, and refuse those that cannot be used")
    on_nonfinite: str = setting(
        "stop", "at a loss or gradient that is not finite: stop | skip (the iteration)", choices=("stop", "skip")
    )
    loader_minutes: float = setting(10.0, "minutes without a batch from the workers after which a training ends")
    workers: int = setting(4, "worker processes that load data, and in mode valid also score; 0 uses none")

    # schedule
    start_ite: int = setting(0, "number of the first iteration")
    max_ite: int = setting(NO_LIMIT, "phase 2: last iteration")
    max_epoch_num: int = setting(1_000_000, "last epoch", minimum=1)
    max_minutes: float = setting(0.0, "minutes after which training ends, and can be resumed; 0 is no limit")
    early_stop: int = setting(20, "patience: validations without a better max F or MAE before training ends", minimum=1)
    model_save_fre: int = setting(2000, "iterations between validations, each of which saves", minimum=1)
    save_minutes: float = setting(0.0, "minutes between further saves, without validation; 0 is none")
    batch_size_train: int = setting(6, "batch size of training, of all processes of torchrun together", minimum=1)
    auto_batch: bool = setting(
        False, "CUDA: train with the largest batch that fits into the GPU's memory, instead of batch_size_train"
    )
    batch_size_valid: int = setting(1, "batch size of validation and inference, of each process", minimum=1)
    accumulation: int = setting(1, "gradient accumulation: batches per iteration", minimum=1)

    # optimizer (AdamW) and loss
    lr: float = setting(4e-5, "phase 2: learning rate")
    lr_decay: str = setting("none", "phase 2: none | cosine (to 0 at max_ite)", choices=("none", "cosine"))
    lr_stem_factor: float = setting(1.0, "phase 2: learning rate of the first convolution, as a multiple of lr")
    ema: float = setting(
        0.0, "phase 2: decay of the EMA of the weights, which is validated and saved; 0 is off", maximum=1
    )
    sync_batchnorm: bool = setting(
        True, "training with torchrun: BatchNorm statistics of the whole batch instead of each process's share"
    )
    freeze_bn: bool = setting(False, "phase 2: keep BatchNorm statistics and weights fixed")
    weight_decay: float = setting(0.0, "weight decay")
    bce_weight: float = setting(20.0, "loss weight of the BCE of each side output")
    iou_weight: float = setting(0.5, "loss weight of the IoU loss of each side output")
    edge_weight: float = setting(0.0, "phase 2: extra BCE weight of pixels near edges; F3Net uses 5")
    outside_weight: float = setting(
        0.0, "phase 2, 5 channels: extra BCE weight of pixels outside the box grown by 10 % on each side"
    )
    feature_weight: float = setting(1.0, "phase 2: loss weight of the intermediate supervision")
    orthogonal_weight: float = setting(1e-8, "loss weight of the orthogonal regularization")

    # phase 1
    gt_encoder_lr: float = setting(1e-4, "phase 1: learning rate")
    gt_encoder_stop_f: float = setting(0.99, "phase 1: max F above which training ends")
    gt_encoder_max_ite: int = setting(NO_LIMIT, "phase 1: last iteration")

    @classmethod
    def from_hypar(cls, hypar: Mapping[str, Any]) -> Settings:
        """Check a ``hypar`` dict and fill in the defaults.

        Args:
            hypar: Any of this class's fields. A size may be one integer or a (height, width) pair.

        Returns:
            Settings with absolute paths. Empty sizes are filled in, and existing checkpoints are found.

        Raises:
            HyparError: If a key is unknown, a value does not fit its key, or two values contradict each other.
        """
        for key in hypar:
            if key not in FIELDS:
                raise HyparError(f"hypar has no key {key!r}{did_you_mean(key, FIELDS)}")
        settings = cls(**{key: _checked(key, hypar.get(key, entry.default)) for key, entry in FIELDS.items()})
        settings = replace(settings, input_size=settings.input_size or settings.cache_size)
        settings = replace(settings, crop_size=settings.crop_size or settings.input_size)
        settings._check_combinations()
        paths = {}
        for key, entry in FIELDS.items():
            value, rule = getattr(settings, key), entry.metadata["rule"].path
            if value and rule == FOLDER:
                paths[key] = str(resolve(value))
            elif value and rule == CHECKPOINT:
                paths[key] = str(find_checkpoint(key, value, settings.model_path))
        return replace(settings, **paths)

    def _check_combinations(self) -> None:
        if any(crop > whole for crop, whole in zip(self.crop_size, self.input_size, strict=True)):
            raise HyparError(
                f"hypar['crop_size']: {list(self.crop_size)} is larger than input_size {list(self.input_size)}; "
                "reduce crop_size"
            )
        self._check_prompts()
        if self.mode == "train" and not self.model_path:
            raise HyparError("hypar['model_path']: is empty, but mode 'train' needs a folder for its checkpoints")
        if self.mode == "inference" and not self.valid_out_dir:
            raise HyparError("hypar['valid_out_dir']: is empty, but mode 'inference' needs a folder for its maps")
        if self.mode != "train" and not self.restore_model:
            raise HyparError(f"hypar['restore_model']: is empty, but mode {self.mode!r} needs a checkpoint")
        for key in ("mask_skip_logit", "box_gain"):
            if getattr(self, key) and not self.restore_model:
                raise HyparError(
                    f"hypar[{key!r}]: is for weights with fewer input channels than the network, but restore_model is "
                    f"empty; name them there, or set {key} to 0"
                )
        if self.mode == "train" and self.gt_encoder_model and not self.interm_sup:
            raise HyparError("hypar['gt_encoder_model']: is not used without interm_sup; set one of them")
        if self.mode == "train" and self.backgrounds and not self.copy_paste:
            raise HyparError("hypar['backgrounds']: are those of copy_paste, which is 0; set it, or leave this empty")
        if self.mode != "train" and self.passes > 1 and self.in_ch < 4:
            raise HyparError(
                f"hypar['passes']: is {self.passes}, but a network with {self.in_ch} input channels has no mask "
                "channel, so that all passes are the same; set it to 1"
            )
        if self.compile and self.recompute:
            raise HyparError("hypar['recompute']: does not work together with compile; set one of them to False")
        if self.lr_decay == "cosine" and self.max_ite == NO_LIMIT:
            raise HyparError("hypar['lr_decay']: 'cosine' decays to 0 at max_ite, which is not set; set max_ite")

    def _check_prompts(self) -> None:
        needed = {"outside_weight": 5, "box_gain": 5, "mask_skip_logit": 4, **dict.fromkeys(PROMPT_KEYS, 4)}
        for key, least in needed.items():
            if getattr(self, key) and self.in_ch < least:
                raise HyparError(
                    f"hypar[{key!r}]: is {getattr(self, key):g}, but a network with {self.in_ch} input channels has no "
                    f"{'box' if least == 5 else 'prompt'}; set hypar['model'] to {'5' if least == 5 else '4 or 5'}, or "
                    f"{key} to 0"
                )
        if self.whole_frame and not self.drop_mask:
            raise HyparError("hypar['whole_frame']: is a share of the samples without a mask; set drop_mask too")
        if self.box_jitter and self.in_ch < 5 and not self.drop_mask:
            raise HyparError(
                f"hypar['box_jitter']: is {self.box_jitter:g}, but a network with {self.in_ch} input channels gets the "
                "box only where the mask is dropped; set drop_mask too, hypar['model'] to 5, or box_jitter to 0"
            )
        if not self.window_share:
            return
        if self.window_share + self.own_mask > 1:
            raise HyparError(
                f"hypar['own_mask']: {self.own_mask:g} and window_share {self.window_share:g} are shares of different "
                "samples, and their sum is above 1; reduce one of them"
            )
        if self.crop_size != self.input_size:
            raise HyparError(
                f"hypar['crop_size']: with window_share, windows take the place of crops; leave crop_size empty or set "
                f"it to input_size {list(self.input_size)}"
            )
        small = any(cache < side for cache, side in zip(self.cache_size, self.input_size, strict=True))
        if small or self.cache_size == self.input_size:
            raise HyparError(
                f"hypar['window_share']: windows of input_size {list(self.input_size)} are cut from samples of "
                f"cache_size {list(self.cache_size)}; increase cache_size, for example to twice input_size"
            )

    @property
    def varies_prompts(self) -> bool:
        """Whether the prompts of training samples are varied (:mod:`IS_Net.training_prompts`)."""
        return any(getattr(self, key) for key in PROMPT_KEYS)

    @property
    def in_ch(self) -> int:
        """Input channels of the network."""
        return self.model if isinstance(self.model, int) else self.model.in_ch

    def as_dict(self) -> dict[str, Any]:
        """Return plain Python values, to be saved: sizes as lists, the network as its number of input channels."""
        values = {key: getattr(self, key) for key in FIELDS}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()} | {"model": self.in_ch}


FIELDS: dict[str, Field] = {entry.name: entry for entry in fields(Settings)}
"""The fields of :class:`Settings` by key, in the order of the table."""


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _checked(key: str, value: Any) -> Any:
    """Return the value of one setting in the type of its default, or raise a HyparError."""
    default, rule = FIELDS[key].default, FIELDS[key].metadata["rule"]
    if isinstance(default, tuple):
        return _checked_size(key, value, rule)
    if key == "model" and hasattr(value, "predict_logits") and getattr(value, "in_ch", None) in rule.choices:
        return value
    if isinstance(default, bool):
        if value not in (0, 1):  # the published code writes flips as 1 and 0
            raise HyparError(f"hypar[{key!r}]: expected True or False, found {value!r}")
        return bool(value)
    if rule.path and isinstance(value, Path):
        value = str(value)
    if rule.path and isinstance(value, str):
        _expanded(key, value)
    if isinstance(default, float) and _is_int(value):
        value = float(value)
    if type(value) is not type(default):
        kind = f"{type(default).__name__} such as {default!r}" + (" or an ISNetDIS" if key == "model" else "")
        raise HyparError(f"hypar[{key!r}]: expected {kind}, found {type(value).__name__} {value!r}")
    if rule.choices and value not in rule.choices:
        raise HyparError(f"hypar[{key!r}]: expected one of {', '.join(map(str, rule.choices))}, found {value!r}")
    if key == "metrics":
        try:
            choose(value)
        except ValueError as error:
            raise HyparError(f"hypar['metrics']: {error}") from error
    if isinstance(value, (int, float)) and not (rule.minimum <= value <= rule.maximum and value < math.inf):
        wanted = f"at least {rule.minimum}" if rule.maximum == math.inf else f"{rule.minimum} to {rule.maximum}"
        raise HyparError(f"hypar[{key!r}]: expected a finite number of {wanted}, found {value!r}")
    return value


def _expanded(key: str, text: str) -> Path:
    """Return a path with the home folder in place of ``~``, or raise a HyparError if it cannot be one."""
    if "\0" in text:
        raise HyparError(f"hypar[{key!r}]: expected a path, found {text!r} with a NUL character; remove that")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise HyparError(
            f"hypar[{key!r}]: expected a path, found {text!r}, where the home folder of ~ is not known; check the "
            "user's name, or write the folder instead"
        ) from error


def _checked_size(key: str, value: Any, rule: Rule) -> tuple[int, ...]:
    pair = [value, value] if _is_int(value) else value
    if not isinstance(pair, (list, tuple)) or not (len(pair) == 2 or (not pair and FIELDS[key].default == ())):
        pair = [None]
    if not all(_is_int(side) and side >= rule.minimum for side in pair):
        raise HyparError(
            f"hypar[{key!r}]: expected [height, width], integers of at least {rule.minimum}, found {value!r}"
        )
    return tuple(pair)


def find_checkpoint(key: str, name: str, model_path: str) -> Path:
    """Find a checkpoint in ``model_path``, where the published code looks for it, or at its own path.

    Args:
        key: The setting, for the message.
        name: File name or path; a relative path starts at :func:`IS_Net.paths.settings_base`, or else at
            the current folder.
        model_path: The setting of that name; may be empty.

    Raises:
        HyparError: If it is in none of these places.
    """
    places = [resolve(name, resolve(model_path) if model_path else settings_base()), resolve(name)]
    places.append(resolve(name, Path.cwd()))
    for place in places:
        if place.is_file():
            return place
    searched = " and ".join(dict.fromkeys(map(str, places)))
    raise HyparError(f"hypar[{key!r}]: there is no checkpoint {name!r} (searched {searched}); check the path")


def parse_assignments(arguments: Sequence[str], extra: Sequence[str] = ()) -> dict[str, Any]:
    """Read ``key=value`` arguments into a ``hypar`` dict, each value by the type of its setting.

    A size is ``1024`` or ``1024,768`` (height, width); a truth value is ``True``, ``False``, ``1`` or ``0``. A relative
    path starts at the current folder; the bare name of a checkpoint that is not there is left for
    :func:`find_checkpoint`.

    Args:
        arguments: For example ``["mode=valid", "batch_size_train=4"]``.
        extra: Keys that are not settings; their values are returned as strings.

    Raises:
        HyparError: If an argument has no ``=``, or has an unknown key or a value that cannot be read.
    """
    settings: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise HyparError(f"expected key=value, found {argument!r}; for example mode=valid")
        if key not in FIELDS and key not in extra:
            raise HyparError(f"hypar has no key {key!r}{did_you_mean(key, [*FIELDS, *extra])}")
        settings[key] = text if key in extra else _parsed(key, text)
    return settings


def _parsed(key: str, text: str) -> Any:
    default, rule = FIELDS[key].default, FIELDS[key].metadata["rule"]
    if rule.path:
        path = _expanded(key, text)
        bare_name = rule.path == CHECKPOINT and path.name == text and not path.exists()
        return text if not text or bare_name else str(path.resolve())
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text.strip().capitalize() if isinstance(default, bool) else text)
    except (ValueError, SyntaxError, TypeError) as error:
        example = list(default) if isinstance(default, tuple) else default
        raise HyparError(f"{key}: cannot read {text!r}; expected a value such as {example!r}") from error
    if isinstance(default, int) and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e6
    return value


def override(hypar: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``hypar`` with some settings replaced; a size that is given also applies to the sizes derived from it."""
    derived = {"cache_size": ("input_size", "crop_size"), "input_size": ("crop_size",)}
    reset = {key: () for size, keys in derived.items() if size in given for key in keys}
    return {**hypar, **reset, **given}


def describe_settings() -> str:
    """Return the table of settings as text, one line for each: ``key=default`` and its comment."""
    lines = []
    for key, entry in FIELDS.items():
        value = ",".join(map(str, entry.default)) if isinstance(entry.default, tuple) else entry.default
        lines.append(f"  {f'{key}={value}':<30} {entry.metadata['rule'].comment}")
    return "\n".join(lines)
