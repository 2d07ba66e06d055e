"""The two loops, ``fit`` and ``validate``, that train and score both networks."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from IS_Net.checkpoint import save_state, save_weights
from IS_Net.device import autocast
from IS_Net.errors import TrainingError
from IS_Net.images import write_mask
from IS_Net.losses import orthogonal_loss
from IS_Net.metrics import MAE, FMeasure
from IS_Net.metrics.suite import mean_figures
from IS_Net.preprocess import alpha_to_uint8, make_alpha
from IS_Net.run_log import RunLog
from IS_Net.tasks import SegmentationTask, Task

logger = logging.getLogger(__name__)

Metrics = dict[str, float]
STATE_FILE = "last.pt"
_ENDLESS = 1_000_000  # limits from here on are none, and get no bar
_LOG_EVERY = 10  # iterations between two looks at the loss, each of which makes the host wait for the device


# --- validation -----------------------------------------------------------------------------------------------------


class _MapWriter:
    """Writes maps while the device goes on; never more than a few wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(4)
        self._pending: list[Future] = []

    def write(self, name: str, alpha: Tensor) -> None:
        if len(self._pending) >= 16:
            self._pending.pop(0).result()
        self._pending.append(self._pool.submit(write_mask, self.folder / f"{name}.png", alpha.cpu().numpy()))

    def close(self) -> None:
        self._pool.shutdown()
        for future in self._pending:
            future.result()


@torch.inference_mode()
def predict_maps(
    task: Task,
    loader: DataLoader,
    device: torch.device,
    dtype: torch.dtype | None,
    out_dir: str | Path | None = None,
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Run a network on one data set, in eval mode, and write its maps on the way.

    Args:
        task: The network and what it sees.
        loader: Of :class:`IS_Net.data_loader.ValidDataset`, of any batch size.
        device: Where the network is.
        dtype: Of autocast; None is float32.
        out_dir: Where the maps go, as ``<out_dir>/<data set>/<name>.png``; none are written where it is empty.

    Yields:
        Name; map, (H, W) uint8 on the device, of the image's own size and rounded as it is saved; ground truth,
        (H, W) uint8 on the CPU, or None where the data set has none.
    """
    name = loader.dataset.name
    writer = _MapWriter(Path(out_dir) / name) if out_dir else None
    was_training = task.model.training
    task.model.eval()
    try:
        with tqdm(total=len(loader.dataset), desc=f"valid {name}", unit="image", leave=False) as bar:
            for batch in loader:
                with autocast(device, dtype):
                    logits = task.model.predict_logits(task.input(batch.planes.to(device, non_blocking=True)))
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
) -> Metrics:
    """Score a network on one data set at the ground truth's own size, on maps rounded to uint8 as they are saved.

    Scoring stays on the device; nothing is fetched from it before the end, unless maps are written. Arguments as for
    :func:`predict_maps`.

    Returns:
        ``max_f_mean_pr``, ``max_f_mean_curve`` and ``mae``; nan where the data set has no ground truth.
    """
    f_measure, mae = FMeasure(), MAE()
    for _, alpha, gt in predict_maps(task, loader, device, dtype, out_dir):
        if gt is not None:
            gt = gt.to(device, non_blocking=True)
            if device.type == "mps":  # has no float64, which exact sums need
                alpha, gt = alpha.cpu(), gt.cpu()
            f_measure.update(alpha, gt)
            mae.update(alpha, gt)
    return {**f_measure.compute(), **mae.compute()}


def tell(metrics: Metrics) -> str:
    """Put a validation's metrics into one line."""
    return (
        f"max F {metrics['max_f_mean_pr']:.4f} (mean precision and recall), "
        f"{metrics['max_f_mean_curve']:.4f} (mean curve), MAE {metrics['mae']:.4f}"
    )


# --- training -------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """How far a phase is, and what it has reached; all of it is saved with the state."""

    iteration: int = 0
    """Optimizer steps taken."""
    batch: int = 0
    """Batches consumed, over all epochs."""
    best_f: float = -1.0
    best_mae: float = float("inf")
    """MAE of the best checkpoint."""
    epoch: int = 0
    loss: float = float("nan")
    """Mean training loss of the last stretch."""
    lowest_mae: float = float("inf")
    """The lowest MAE of any validation."""
    last_f: float = -1.0
    """Max F of the last validation."""
    validated: int = -1
    """The iteration of the last validation."""
    stale: int = 0
    """Validations since max F or MAE last improved."""
    per_epoch: int = 0
    """Batches an epoch."""
    done: str = ""
    """Why the phase ended, once it has."""

    def record(self, metrics: Metrics) -> bool:
        """Take a validation in; return whether it is the best so far: the highest max F, ties by the lower MAE."""
        f, mae = metrics["max_f_mean_pr"], metrics["mae"]
        self.last_f, self.validated = f, self.iteration
        improved = f > self.best_f or mae < self.lowest_mae
        self.stale = 0 if improved else self.stale + 1
        self.lowest_mae = min(self.lowest_mae, mae)
        best = (f, -mae) > (self.best_f, -self.best_mae)
        if best:
            self.best_f, self.best_mae = f, mae
        return best


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
    """What a phase is trained with: the surroundings that do not change while it runs."""

    settings: dict[str, Any]
    device: torch.device
    dtype: torch.dtype | None
    valid_loaders: Sequence[DataLoader]
    make_train_loader: Callable[[int], DataLoader]
    """Gives an endless loader that starts at the batch of that number."""
    log: RunLog
    in_ch: int
    """Input channels of the segmentation network."""
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = Path(self.settings["model_path"])


def fit(task: Task, run: Run, resume: dict[str, Any] | None = None) -> Progress:
    """Train a network until one of its ends is reached; always validate and save at the end.

    The ends are: ``max_ite`` iterations; ``max_epoch_num`` epochs; ``early_stop`` validations in which neither max F
    nor MAE improved; in phase 1, a max F above ``gt_encoder_stop_f``; and a request to stop (Ctrl-C, SIGTERM), which
    saves without validating, so that the resumed run is the one that was not interrupted.

    Args:
        task: The network and its losses.
        run: The surroundings.
        resume: What :func:`IS_Net.checkpoint.load_state` gave of this phase, to go on from.

    Returns:
        The progress; its ``done`` says which end was reached. ``task.weights_file`` and ``last.pt`` are in the run's
        folder; the network holds the last weights, not the best.

    Raises:
        TrainingError: If the loss is not finite.
    """
    training = Training(task, run, resume)
    progress, batches = training.progress, None
    per_epoch = run.make_train_loader(0).batch_sampler.per_epoch
    if progress.per_epoch not in (0, per_epoch):
        # resumed with other data or batches: go on at the same part of the epoch
        progress.batch = progress.batch * per_epoch // progress.per_epoch
    progress.per_epoch = per_epoch
    progress.done = ""  # the limits may have been moved since the run was saved; they are looked at anew
    total = task.max_ite if task.max_ite < _ENDLESS else None
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
            elif progress.epoch >= run.settings["max_epoch_num"]:
                progress.done = "max_epoch_num"
            elif progress.stale >= run.settings["early_stop"]:
                progress.done = "early_stop"
            elif task.stop_f is not None and progress.last_f > task.stop_f:
                progress.done = "stop_f"
            else:
                if batches is None:
                    batches = iter(run.make_train_loader(progress.batch))
                training.step(batches)
                bar.update()
                if progress.iteration % _LOG_EVERY == 0:
                    bar.set_postfix(loss=f"{training.look_at_loss():.4g}")
                if progress.iteration % run.settings["model_save_fre"] == 0:
                    training.validate()
                    training.save()
        if progress.done != "interrupted" and progress.validated != progress.iteration:
            training.validate()
        training.look_at_loss()  # rather no new state than one of a network that broke since the last look
        training.save()
    logger.info("%s: stopped at iteration %d (%s)", task.name, progress.iteration, progress.done)
    return progress


class Training:
    """What changes while a phase runs, and the three things that are done to it: step, validate, save.

    Args:
        task: The network and its losses.
        run: The surroundings.
        resume: As :func:`fit` takes it.
    """

    def __init__(self, task: Task, run: Run, resume: dict[str, Any] | None = None) -> None:
        self.task, self.run = task, run
        task.model.to(run.device, memory_format=torch.channels_last)
        task.train()
        if task.teacher is not None:
            task.teacher.to(run.device, memory_format=torch.channels_last)
        # fused: one kernel for all parameters instead of some thousand; the arithmetic is the same
        self.optimizer = torch.optim.AdamW(
            task.parameters(), lr=task.lr, weight_decay=run.settings["weight_decay"], fused=True
        )
        # float16 gradients underflow without a scaler; bfloat16 has float32's range
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype is torch.float16)
        self.progress = Progress(iteration=task.start_ite)
        # what is validated and kept: the network itself, or the moving average of its weights
        self.kept = deepcopy(task.model).requires_grad_(False) if task.ema else task.model
        if resume:
            if task.ema and resume.get("average") is not None:
                self.kept.load_state_dict(resume["average"])
            self.progress = Progress(**resume["progress"])
            factors = [group["factor"] for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(resume["optimizer"])
            self.scaler.load_state_dict(resume["scaler"])
            # what was saved would overrule what is asked for now
            for group, factor in zip(self.optimizer.param_groups, factors, strict=True):
                group.update(factor=factor, weight_decay=run.settings["weight_decay"])
        run.log.begin(task.name, self.progress.iteration)
        self.started = time.perf_counter()
        self._losses = torch.zeros(2, device=run.device)  # sum and number since the last look

    def step(self, batches: Iterator[Tensor]) -> None:
        """Take one optimizer step over ``accumulation`` batches."""
        run, accumulation = self.run, self.run.settings["accumulation"]
        lr = self._lr()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(accumulation):
            planes = next(batches).to(run.device, non_blocking=True)
            with autocast(run.device, run.dtype):
                loss = self.task.loss(planes)
            if run.settings["orthogonal_weight"]:
                loss = loss + run.settings["orthogonal_weight"] * orthogonal_loss(self.task.model)
            self.scaler.scale(loss / accumulation).backward()
            self._losses += torch.stack((loss.detach(), torch.ones_like(loss)))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.progress.iteration += 1
        self.progress.batch += accumulation
        if self.task.ema:
            self._average()

    @torch.no_grad()
    def _average(self) -> None:
        steps = self.progress.iteration - self.task.start_ite
        decay = min(self.task.ema, steps / (steps + 10))  # a young average would be one of the first weights
        for mean, now in zip(self.kept.state_dict().values(), self.task.model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)

    @contextmanager
    def _with_kept(self) -> Iterator[None]:
        """Let the task's network be the one that is kept, for a while."""
        trained, self.task.model = self.task.model, self.kept
        try:
            yield
        finally:
            self.task.model = trained

    def _lr(self) -> float:
        if not self.task.cosine:
            return self.task.lr
        share = min(self.progress.iteration / max(self.task.max_ite, 1), 1)
        return self.task.lr * 0.5 * (1 + math.cos(math.pi * share))

    def look_at_loss(self) -> float:
        """Return the mean loss since the last look, note it, and stop a run whose loss is not finite."""
        total, number = self._losses.tolist()
        self._losses.zero_()
        if not number:
            return self.progress.loss
        self.progress.loss = total / number
        if not math.isfinite(self.progress.loss):
            raise TrainingError(
                f"{self.task.name}: the loss is {self.progress.loss} at iteration {self.progress.iteration}; lower the "
                f"learning rate or set hypar['model_digit'] to 'full'; {self.run.folder} holds what was before"
            )
        self.run.log.loss(self.progress.iteration, self.progress.loss)
        return self.progress.loss

    def validate(self) -> None:
        """Score the network on all data sets, note it, and keep the best weights."""
        task, run, progress = self.task, self.run, self.progress
        loss = self.look_at_loss()
        results = []
        for loader in run.valid_loaders:
            out_dir = run.settings["valid_out_dir"] if isinstance(task, SegmentationTask) else None
            with self._with_kept():
                metrics = validate(task, loader, run.device, run.dtype, out_dir)
            results.append(metrics)
            logger.info("%s, iteration %d, %s: %s", task.name, progress.iteration, loader.dataset.name, tell(metrics))
            row = {"phase": task.name, "iteration": progress.iteration, "epoch": progress.epoch}
            row |= {"data_set": loader.dataset.name, "loss": loss, **metrics}
            run.log.validation(row | {"seconds": round(time.perf_counter() - self.started, 1)})
        metrics = mean_figures(results)
        if progress.record(metrics):
            save_weights(run.folder / task.weights_file, self.kept, self._facts() | {"metrics": metrics})

    def _facts(self) -> dict[str, Any]:
        return {
            "network": type(self.task.model).__name__,
            "in_ch": self.task.model.in_ch,
            "input_size": self.run.settings["input_size"],
            "iteration": self.progress.iteration,
        }

    def save(self) -> None:
        """Write everything that the run needs to go on to ``last.pt``."""
        teacher = self.task.teacher
        state = {
            "phase": self.task.name,
            "progress": asdict(self.progress),
            "model": self.task.model.state_dict(),
            "average": self.kept.state_dict() if self.task.ema else None,
            "teacher": None if teacher is None else teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "facts": self._facts(),
            "settings": {**self.run.settings, "model": self.run.in_ch},
        }
        save_state(self.run.folder / STATE_FILE, state)
