"""The two loops, :func:`fit` and :func:`validate`, which train and score both networks."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from IS_Net.bounded import BoundedQueue
from IS_Net.checkpoint import save_state, save_weights
from IS_Net.device import autocast
from IS_Net.errors import TrainingError
from IS_Net.hypar import Settings
from IS_Net.images import write_mask
from IS_Net.losses import orthogonal_loss
from IS_Net.metrics import MAE, FMeasure
from IS_Net.metrics.suite import mean_figures
from IS_Net.preprocess import MASK_CHANNEL, alpha_to_uint8, make_alpha, make_target
from IS_Net.run_log import RunLog
from IS_Net.tasks import SegmentationTask, Task

logger = logging.getLogger(__name__)

Metrics = dict[str, float]
STATE_FILE = "last.pt"
_UNLIMITED = 1_000_000  # iterations; a limit from here on gets no progress bar
_LOG_EVERY = 10  # iterations between two readings of the loss, each of which makes the host wait for the device


# --- validation -----------------------------------------------------------------------------------------------------


class _MapWriter:
    """Writes predicted maps in threads while the device continues; only a few maps wait in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(4)
        self._queue = BoundedQueue(self._pool, 16)

    def write(self, name: str, alpha: Tensor) -> None:
        self._queue.submit(write_mask, self.folder / f"{name}.png", alpha.cpu().numpy())

    def close(self) -> None:
        self._pool.shutdown()
        self._queue.close()


@torch.inference_mode()
def predict_maps(
    task: Task,
    loader: DataLoader,
    device: torch.device,
    dtype: torch.dtype | None,
    out_dir: str | Path | None = None,
    model: nn.Module | None = None,
    passes: int = 1,
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Run a network in eval mode on one data set, and write its maps along the way.

    Args:
        task: Provides the network and its input.
        loader: Of :class:`IS_Net.data_loader.ValidDataset`, with any batch size.
        device: Where the network is.
        dtype: Of autocast; None is float32.
        out_dir: Folder of the maps, ``<out_dir>/<data set>/<name>.png``; none are written if it is empty.
        model: The network to run; None is the task's own.
        passes: Number of forward passes; each takes the alpha matte of the one before as its coarse mask. A network
            without a mask channel runs once.

    Yields:
        The name; the map, (H, W) uint8 on the device, at the image's own size and rounded as it is saved; the ground
        truth, (H, W) uint8 on the CPU, or None if the data set has none.
    """
    name = loader.dataset.name
    writer = _MapWriter(Path(out_dir) / name) if out_dir else None
    was_training = task.model.training
    model = (task.model if model is None else model).eval()
    try:
        with tqdm(total=len(loader.dataset), desc=f"valid {name}", unit="image", leave=False) as bar:
            for batch in loader:
                x = task.input(batch.planes.to(device, non_blocking=True))
                with autocast(device, dtype):
                    logits = model.predict_logits(x)
                for _ in range(passes - 1 if x.shape[1] > MASK_CHANNEL else 0):
                    x[:, MASK_CHANNEL] = make_target(alpha_to_uint8(make_alpha(logits, x.shape[-2:])))[:, 0]
                    with autocast(device, dtype):
                        logits = model.predict_logits(x)
                for i, size in enumerate(batch.sizes):
                    alpha = alpha_to_uint8(make_alpha(logits[i : i + 1], size))[0, 0]
                    if writer:
                        writer.write(batch.names[i], alpha)
                    yield batch.names[i], alpha, None if batch.gts is None else batch.gts[i]
                bar.update(len(batch.names))
    finally:
        if was_training:
            task.train()
        if writer:
            writer.close()


def validate(
    task: Task,
    loader: DataLoader,
    device: torch.device,
    dtype: torch.dtype | None,
    out_dir: str | Path | None = None,
    model: nn.Module | None = None,
) -> Metrics:
    """Score a network on one data set, at the size of each ground truth and on maps rounded to uint8 as they are saved.

    The metrics are computed on the device; nothing is copied from it before the end, unless maps are written. The
    arguments are those of :func:`predict_maps`.

    Returns:
        ``max_f_mean_pr``, ``max_f_mean_curve`` and ``mae``; nan if the data set has no ground truth.
    """
    f_measure, mae = FMeasure(), MAE()
    for _, alpha, gt in predict_maps(task, loader, device, dtype, out_dir, model):
        if gt is not None:
            gt = gt.to(device, non_blocking=True)
            if device.type == "mps":  # has no float64, which exact sums need
                alpha, gt = alpha.cpu(), gt.cpu()
            f_measure.update(alpha, gt)
            mae.update(alpha, gt)
    return {**f_measure.compute(), **mae.compute()}


def format_metrics(metrics: Metrics) -> str:
    """Return the metrics of a validation in one line."""
    return (
        f"max F {metrics['max_f_mean_pr']:.4f} (mean precision and recall), "
        f"{metrics['max_f_mean_curve']:.4f} (mean curve), MAE {metrics['mae']:.4f}"
    )


# --- training -------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """How far a phase is, and the best metrics so far; it is saved with the training state."""

    iteration: int = 0
    """Optimizer steps, counted from ``start_ite``."""
    batch: int = 0
    """Batches used, over all epochs."""
    best_f: float = -1.0
    """Max F of the best checkpoint."""
    best_mae: float = float("inf")
    """MAE of the best checkpoint."""
    epoch: int = 0
    loss: float = float("nan")
    """Mean training loss between the last two readings."""
    lowest_mae: float = float("inf")
    """The lowest MAE of any validation."""
    last_f: float = -1.0
    """Max F of the last validation."""
    validated: int = -1
    """The iteration of the last validation."""
    patience_count: int = 0
    """Validations since max F or MAE last improved."""
    per_epoch: int = 0
    """Batches per epoch."""
    done: str = ""
    """Why the phase ended; empty while it runs."""

    @property
    def interrupted(self) -> bool:
        """Whether a request to stop ended the phase."""
        return self.done == "interrupted"

    @property
    def unfinished(self) -> bool:
        """Whether a request to stop or the time limit ended the phase, so that it is to be resumed."""
        return self.done in ("interrupted", "max_minutes")

    def record(self, metrics: Metrics) -> bool:
        """Record a validation; return whether it is the best so far: the highest max F, ties by the lower MAE."""
        f, mae = metrics["max_f_mean_pr"], metrics["mae"]
        self.last_f, self.validated = f, self.iteration
        improved = f > self.best_f or mae < self.lowest_mae
        self.patience_count = 0 if improved else self.patience_count + 1
        self.lowest_mae = min(self.lowest_mae, mae)
        best = (f, -mae) > (self.best_f, -self.best_mae)
        if best:
            self.best_f, self.best_mae = f, mae
        return best


class EMA:
    """Exponential moving average (EMA) of the weights and BatchNorm statistics of a network.

    Args:
        model: The network; the average starts as a copy of it.
        decay: The share of the average that each update keeps, 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = deepcopy(model).requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average with the network's weights after optimizer step number ``step``, from 1 on."""
        decay = min(self.decay, step / (step + 10))  # else the initial weights would dominate a young average
        for mean, now in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request that the loop answers between two iterations."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def request(_number: int, _frame: Any) -> None:
        requested.set()
        for number, handler in before.items():  # a second one stops at once
            signal.signal(number, handler)

    for number in signals:
        signal.signal(number, request)
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Run:
    """What a phase is trained with; none of it changes during the run."""

    settings: Settings
    device: torch.device
    dtype: torch.dtype | None
    """Of autocast; None is float32."""
    valid_loaders: Sequence[DataLoader]
    make_train_loader: Callable[[int], DataLoader]
    """Returns an endless loader that starts at the batch of the given number."""
    log: RunLog
    started: float = field(default_factory=time.monotonic)
    """When the run was started or resumed, in seconds of :func:`time.monotonic`."""

    @property
    def folder(self) -> Path:
        """Folder of the checkpoints."""
        return Path(self.settings.model_path)

    @property
    def out_of_time(self) -> bool:
        """Whether ``max_minutes`` have passed since the start."""
        limit = self.settings.max_minutes
        return bool(limit) and time.monotonic() - self.started >= 60 * limit


def fit(task: Task, run: Run, resume: dict[str, Any] | None = None) -> Progress:
    """Train a network until an end condition is met; always validate and save at the end.

    The end conditions are: ``max_ite`` iterations; ``max_epoch_num`` epochs; ``early_stop`` validations in which
    neither max F nor MAE improved; in phase 1, a max F above ``gt_encoder_stop_f``; ``max_minutes``; and a request to
    stop (Ctrl-C, SIGTERM). The latter saves without validating, so that the resumed run equals one that was never
    interrupted.

    Args:
        task: The network and its losses.
        run: What it is trained with.
        resume: The state of this phase, as :func:`IS_Net.checkpoint.load_state` returns it, to resume from.

    Returns:
        The progress, whose ``done`` names the end condition. ``task.weights_file`` and ``last.pt`` are in the folder
        of the run; the network holds the last weights, not the best.

    Raises:
        TrainingError: If the loss is not finite.
    """
    training = Training(task, run, resume)
    progress, batches = training.progress, None
    per_epoch = run.make_train_loader(0).batch_sampler.per_epoch
    if progress.per_epoch not in (0, per_epoch):
        # resumed with other data or another batch size: continue at the same fraction of the epoch
        progress.batch = progress.batch * per_epoch // progress.per_epoch
    progress.per_epoch = per_epoch
    progress.done = ""  # the limits may have changed since the state was saved; they are checked again
    total = task.max_ite if task.max_ite < _UNLIMITED else None
    with (
        _stop_requests() as stop_requested,
        tqdm(total=total, initial=progress.iteration, desc=f"train {task.name}", unit="it") as bar,
    ):
        while not progress.done:
            progress.epoch = progress.batch // per_epoch
            if stop_requested():
                progress.done = "interrupted"
            elif progress.iteration >= task.max_ite:
                progress.done = "max_ite"
            elif progress.epoch >= run.settings.max_epoch_num:
                progress.done = "max_epoch_num"
            elif progress.patience_count >= run.settings.early_stop:
                progress.done = "early_stop"
            elif task.stop_f is not None and progress.last_f > task.stop_f:
                progress.done = "stop_f"
            elif run.out_of_time:
                progress.done = "max_minutes"
            else:
                if batches is None:
                    batches = iter(run.make_train_loader(progress.batch))
                training.step(batches)
                bar.update()
                if progress.iteration % _LOG_EVERY == 0:
                    bar.set_postfix(loss=f"{training.read_loss():.4g}")
                if progress.iteration % run.settings.model_save_fre == 0:
                    training.validate()
                    training.save()
                elif training.save_is_due:
                    training.read_loss()  # raises before a network that has diverged is saved
                    training.save()
        if not progress.interrupted and progress.validated != progress.iteration:
            training.validate()
        training.read_loss()  # raises before a network that has diverged is saved
        training.save()
    logger.info("%s: stopped at iteration %d (%s)", task.name, progress.iteration, progress.done)
    return progress


class Training:
    """What changes while a phase runs, and the three operations on it: step, validate, save.

    Args:
        task: The network and its losses.
        run: What it is trained with.
        resume: As :func:`fit` takes it.
    """

    def __init__(self, task: Task, run: Run, resume: dict[str, Any] | None = None) -> None:
        self.task, self.run = task, run
        task.model.to(run.device, memory_format=torch.channels_last)
        task.train()
        if task.gt_encoder is not None:
            task.gt_encoder.to(run.device, memory_format=torch.channels_last)
        # fused: one kernel for all parameters instead of thousands; the arithmetic is the same
        self.optimizer = torch.optim.AdamW(
            task.parameters(), lr=task.lr, weight_decay=run.settings.weight_decay, fused=True
        )
        # float16 gradients underflow without a scaler; bfloat16 has the range of float32
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype is torch.float16)
        self.progress = Progress(iteration=task.start_ite)
        self.ema = EMA(task.model, task.ema_decay) if task.ema_decay else None
        if run.settings.compile and isinstance(task, SegmentationTask):
            task.model.compile()
        if resume:
            self._load(resume)
        run.log.begin(task.name, self.progress.iteration)
        self.started = time.perf_counter()
        self._saved = time.monotonic()
        self._losses = torch.zeros(2, device=run.device)  # their sum and number since the last reading

    def _load(self, state: dict[str, Any]) -> None:
        if self.ema and state.get("ema_model") is not None:
            self.ema.model.load_state_dict(state["ema_model"])
        self.progress = Progress(**state["progress"])
        factors = [group["factor"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty if the run began without a scaler: in full precision, or in bfloat16
            self.scaler.load_state_dict(state["scaler"])
        for group, factor in zip(self.optimizer.param_groups, factors, strict=True):
            # the current settings take precedence over the saved ones
            group.update(factor=factor, weight_decay=self.run.settings.weight_decay)

    @property
    def ema_model(self) -> nn.Module:
        """The network that is validated and saved: the EMA of the weights, or the network itself without EMA."""
        return self.ema.model if self.ema else self.task.model

    def step(self, batches: Iterator[Tensor]) -> None:
        """Take one optimizer step on ``accumulation`` batches."""
        settings, device = self.run.settings, self.run.device
        lr = self._lr()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        for index in range(settings.accumulation):
            planes = next(batches).to(device, non_blocking=True)
            planes = self.task.prepare(planes, self.progress.batch + index, self.run.dtype)
            with autocast(device, self.run.dtype):
                loss = self.task.loss(planes)
            if settings.orthogonal_weight:
                loss = loss + settings.orthogonal_weight * orthogonal_loss(self.task.model)
            self.scaler.scale(loss / settings.accumulation).backward()
            self._losses += torch.stack((loss.detach(), torch.ones_like(loss)))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.progress.iteration += 1
        self.progress.batch += settings.accumulation
        if self.ema:
            self.ema.update(self.task.model, self.progress.iteration - self.task.start_ite)

    def _lr(self) -> float:
        if not self.task.cosine_decay:
            return self.task.lr
        fraction = min(self.progress.iteration / max(self.task.max_ite, 1), 1)
        return self.task.lr * 0.5 * (1 + math.cos(math.pi * fraction))

    def read_loss(self) -> float:
        """Return and log the mean loss since the last reading.

        Raises:
            TrainingError: If it is not finite.
        """
        total, number = self._losses.tolist()
        self._losses.zero_()
        if not number:
            return self.progress.loss
        self.progress.loss = total / number
        if not math.isfinite(self.progress.loss):
            raise TrainingError(
                f"{self.task.name}: the loss is {self.progress.loss} at iteration {self.progress.iteration}; reduce "
                f"the learning rate or set hypar['model_digit'] to 'full'. The checkpoints in {self.run.folder} were "
                "saved before and are intact"
            )
        self.run.log.loss(self.progress.iteration, self.progress.loss)
        return self.progress.loss

    def validate(self) -> None:
        """Score the network on all data sets, log the metrics, and save the weights if they are the best so far."""
        task, run, progress = self.task, self.run, self.progress
        loss = self.read_loss()
        out_dir = run.settings.valid_out_dir if isinstance(task, SegmentationTask) else None
        results = []
        for loader in run.valid_loaders:
            metrics = validate(task, loader, run.device, run.dtype, out_dir, self.ema_model)
            results.append(metrics)
            name = loader.dataset.name
            logger.info("%s, iteration %d, %s: %s", task.name, progress.iteration, name, format_metrics(metrics))
            row = {"phase": task.name, "iteration": progress.iteration, "epoch": progress.epoch}
            row |= {"data_set": name, "loss": loss, **metrics}
            run.log.validation(row | {"seconds": round(time.perf_counter() - self.started, 1)})
        metrics = mean_figures(results)
        if progress.record(metrics):
            save_weights(run.folder / task.weights_file, self.ema_model, self._metadata() | {"metrics": metrics})

    def _metadata(self) -> dict[str, Any]:
        return {
            "network": type(self.task.model).__name__,
            "in_ch": self.task.model.in_ch,
            "input_size": list(self.run.settings.input_size),
            "iteration": self.progress.iteration,
            **({"windows": True} if self.run.settings.window_share else {}),
        }

    @property
    def save_is_due(self) -> bool:
        """Whether ``save_minutes`` have passed since the last save."""
        every = self.run.settings.save_minutes
        return bool(every) and time.monotonic() - self._saved >= 60 * every

    def save(self) -> None:
        """Write ``last.pt``: everything that the run needs to resume."""
        gt_encoder = self.task.gt_encoder
        state = {
            "phase": self.task.name,
            "progress": asdict(self.progress),
            "model": self.task.model.state_dict(),
            "ema_model": self.ema.model.state_dict() if self.ema else None,
            "gt_encoder": None if gt_encoder is None else gt_encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "metadata": self._metadata(),
            "settings": self.run.settings.as_dict(),
        }
        save_state(self.run.folder / STATE_FILE, state)
        self._saved = time.monotonic()
