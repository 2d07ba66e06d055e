"""The two loops, :func:`fit` and :func:`validate`, which train and score both networks."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from IS_Net import distributed
from IS_Net.bounded import BoundedQueue
from IS_Net.checkpoint import save_state, save_weights
from IS_Net.device import autocast, training_format
from IS_Net.errors import PeerError, TrainingError, UserError
from IS_Net.hypar import Settings
from IS_Net.images import write_map
from IS_Net.losses import orthogonal_loss
from IS_Net.metrics import MAE, FMeasure
from IS_Net.metrics.suite import mean_figures
from IS_Net.preprocess import MASK_CHANNEL
from IS_Net.run_log import RunLog
from IS_Net.tasks import SegmentationTask, Task
from IS_Net.tensors import alpha_to_uint8, make_alpha, make_target

logger = logging.getLogger(__name__)

Metrics = dict[str, float]
STATE_FILE = "last.pt"
_UNLIMITED = 1_000_000  # iterations; a limit from here on gets no progress bar
_LOG_EVERY = 10  # iterations between two readings of the loss, each of which makes the host wait for the device


# --- requests to stop -----------------------------------------------------------------------------------------------

STOP_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""What a phase that a signal ended calls the end."""
_REASONS = ("", *STOP_SIGNALS.values())


class StopRequested(Exception):  # noqa: N818 - a request is no error
    """A request to stop arrived during a validation."""


class StopRequests:
    """Turns the first Ctrl-C or SIGTERM into a request, which the loops answer between two batches.

    A context manager; outside of it, and in threads other than the main one, signals act as before. A second signal
    ends the process at once, unless it comes within ``REPEAT_SECONDS`` of the first: a process that started this one
    passes on a signal that both have received. One of several processes never ends so: torchrun kills them itself
    after its ``--shutdown-timeout``.
    """

    REPEAT_SECONDS = 1.0
    """How long after the first signal another one counts as the same request."""

    def __init__(self) -> None:
        self.reason = ""
        """The end that was requested, a value of ``STOP_SIGNALS``; empty if there is no request."""
        self._requested_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
            for number in STOP_SIGNALS:
                signal.signal(number, self._request)
        return self

    def _request(self, number: int, _frame: Any) -> None:
        if self.reason:
            if distributed.size() == 1 and time.monotonic() > self._requested_at + self.REPEAT_SECONDS:
                self._restore()
                signal.raise_signal(number)
            return
        self.reason = STOP_SIGNALS[signal.Signals(number)]
        self._requested_at = time.monotonic()
        logger.info("%s: the training stops after this batch and is saved", signal.Signals(number).name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()

    def check(self) -> None:
        """Raise StopRequested if there is a request to this process."""
        if self.reason:
            raise StopRequested

    def agree(self) -> str:
        """Return the reason of a request to any process, and make it that of all; collective."""
        agreed = _REASONS[distributed.highest(_REASONS.index(self.reason))]
        if agreed:  # otherwise, a signal may have come during the exchange; the next one tells it
            self.reason = agreed
        return agreed


# --- validation -----------------------------------------------------------------------------------------------------


class _MapWriter:
    """Writes predicted maps in threads while the device continues; only a few maps wait in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(4)
        self._queue = BoundedQueue(self._pool, 16)

    def write(self, name: str, alpha: Tensor) -> None:
        self._queue.submit(write_map, self.folder / f"{name}.png", alpha.cpu().numpy())

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
    stop: StopRequests | None = None,
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Run a network in eval mode on one data set, and write its maps along the way.

    Args:
        task: Provides the network and its input.
        loader: Of :class:`IS_Net.data_loader.ValidDataset`, with any batch size; of several processes, each has a
            loader of its share.
        device: Where the network is.
        dtype: Of autocast; None is float32.
        out_dir: Folder of the maps, ``<out_dir>/<data set>/<name>.png``; none are written if it is empty.
        model: The network to run; None is the task's own.
        passes: Number of forward passes; each takes the alpha matte of the one before as its coarse mask. A network
            without a mask channel runs once.
        stop: Requests to stop, which end the run after a batch.

    Yields:
        The name; the map, (H, W) uint8 on the device, at the image's own size and rounded as it is saved; the ground
        truth, (H, W) uint8 on the CPU, or None if the data set has none.

    Raises:
        StopRequested: If a request to stop arrived in this process.
    """
    name = loader.dataset.name
    total = len(distributed.share(len(loader.dataset)))
    writer = _MapWriter(Path(out_dir) / name) if out_dir else None
    was_training = task.model.training
    model = (task.model if model is None else model).eval()
    try:
        with tqdm(
            total=total, desc=f"valid {name}", unit="image", leave=False, disable=not distributed.is_main()
        ) as bar:
            for batch in loader:
                if stop is not None:
                    stop.check()
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
    stop: StopRequests | None = None,
) -> Metrics:
    """Score a network on one data set, at the size of each ground truth and on maps rounded to uint8 as they are saved.

    The metrics are computed on the device; nothing is copied from it before the end, unless maps are written. The
    arguments are those of :func:`predict_maps`. Collective: the figures of the images, not their means, are exchanged,
    and summed up in the order of the data set, so that any number of processes gets the same result.

    Returns:
        ``max_f_mean_pr``, ``max_f_mean_curve`` and ``mae``; nan if the data set has no ground truth.

    Raises:
        StopRequested: If a request to stop arrived in any process.
    """
    measured = []
    with suppress(StopRequested):
        for _, alpha, gt in predict_maps(task, loader, device, dtype, out_dir, model, stop=stop):
            if gt is not None:
                gt = gt.to(device, non_blocking=True)
                if device.type == "mps":  # has no float64, which exact sums need
                    alpha, gt = alpha.cpu(), gt.cpu()
                one = FMeasure(), MAE()
                for metric in one:
                    metric.update(alpha, gt)
                measured.append([metric.mean() for metric in one])
    if stop is not None and stop.agree():
        raise StopRequested
    f_measure, mae = FMeasure(), MAE()
    on_cpu = [(torch.as_tensor(curves).cpu().numpy(), float(error)) for curves, error in measured]
    for curves, error in distributed.gather_shares(on_cpu):
        f_measure.add(curves)
        mae.add(error)
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
        return self.done in STOP_SIGNALS.values()

    @property
    def unfinished(self) -> bool:
        """Whether a request to stop or the time limit ended the phase, so that it is to be resumed."""
        return self.interrupted or self.done == "max_minutes"

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
    datasets: dict[str, list[list[Any]]] = field(default_factory=dict)
    """Name and number of samples of each data set, by ``train_datasets`` and ``valid_datasets``."""
    started: float = field(default_factory=time.monotonic)
    """When the run was started or resumed, in seconds of :func:`time.monotonic`."""

    @property
    def folder(self) -> Path:
        """Folder of the checkpoints."""
        return Path(self.settings.model_path)

    @property
    def out_of_time(self) -> bool:
        """Whether ``max_minutes`` have passed since the start, for any process; collective."""
        limit = self.settings.max_minutes
        return bool(limit) and distributed.any_process(time.monotonic() - self.started >= 60 * limit)


def fit(task: Task, run: Run, resume: dict[str, Any] | None = None) -> Progress:
    """Train a network until an end condition is met; always validate and save at the end; collective.

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
        TrainingError: If loss, gradient or weights are not finite, memory is short, or a process that loads data ends.
            What the run reached before is in ``last.pt``.
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
    first, started = progress.iteration, time.perf_counter()
    with (
        StopRequests() as stop,
        tqdm(
            total=total,
            initial=progress.iteration,
            desc=f"train {task.name}",
            unit="it",
            disable=not distributed.is_main(),
        ) as bar,
    ):
        try:
            if training.validation_is_due:  # the state was saved before its validation was complete
                training.validate(stop)
                training.save()
            while not progress.done:
                progress.epoch = progress.batch // per_epoch
                if stop.agree():
                    progress.done = stop.reason
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
                    with training.failures_saved():
                        if batches is None:
                            batches = iter(run.make_train_loader(progress.batch))
                        training.step(batches)
                    bar.update()
                    if progress.iteration - first == _LOG_EVERY:
                        logger.info("%s", _speed(run.device, (time.perf_counter() - started) / _LOG_EVERY))
                    if progress.iteration % _LOG_EVERY == 0:
                        bar.set_postfix(loss=f"{training.read_loss():.4g}")
                    if training.validation_is_due:
                        training.save()  # before the validation, which may fail or take long
                        training.validate(stop)
                        training.save()
                    elif training.save_is_due:
                        training.save()
            if not progress.interrupted and progress.validated != progress.iteration:
                training.save()
                training.validate(stop)
        except StopRequested:
            progress.done = stop.reason
        except OSError as error:
            raise training.write_error(error) from error
        try:
            training.save()
        except OSError as error:
            raise training.write_error(error) from error
        progress.done = stop.agree() or progress.done  # a request during the last validation or save counts, too
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
        task.memory_format = training_format(run.device, run.dtype)
        task.model.to(run.device, memory_format=task.memory_format)
        if run.settings.sync_batchnorm:
            distributed.synchronize_batchnorm(task.model, run.device)
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
        task.network = distributed.parallel(task.model, run.device)
        self._buffers = [buffer for buffer in task.model.buffers() if buffer.is_floating_point()]
        if resume:
            self._load(resume)
        run.log.begin(task.name, self.progress.iteration, self.progress.validated)
        self.started = time.perf_counter()
        self._saved = time.monotonic()
        # sum and number of the losses since the last reading
        self._losses = torch.tensor(resume["losses"] if resume and "losses" in resume else [0.0, 0.0]).to(run.device)
        # number of iterations that were not finite, and the number of the first batch of the first one
        self._bad = torch.zeros(2, dtype=torch.long, device=run.device)

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
        """Take one optimizer step on ``accumulation`` batches; collective.

        If loss, gradient or BatchNorm statistics are not finite, weights and statistics stay as they are.

        Args:
            batches: The training batches; of several processes, each has its share of every batch.

        Raises:
            PeerError: If a batch could not be loaded in another process.
        """
        settings, device = self.run.settings, self.run.device
        lr = self._lr()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros_like(self._losses)
        statistics = self._statistics()
        for index in range(settings.accumulation):
            with distributed.together():
                planes = next(batches)
            samples = distributed.total(len(planes))
            share = distributed.size() * len(planes) / samples  # the gradients' mean is then that over all samples
            planes = planes.to(device, non_blocking=True)
            planes = self.task.prepare(planes, self.progress.batch + index, self.run.dtype, samples)
            with distributed.unsynchronized(self.task.network, index + 1 < settings.accumulation):
                with autocast(device, self.run.dtype):
                    loss = share * self.task.loss(planes)
                if settings.orthogonal_weight:  # of the weights, which are the same in all processes
                    loss = loss + settings.orthogonal_weight * orthogonal_loss(self.task.model)
                self.scaler.scale(loss / settings.accumulation).backward()
            losses += torch.stack((loss.detach(), torch.ones_like(loss)))
        losses = distributed.mean(losses)
        if not settings.sync_batchnorm:
            distributed.average_buffers(self.task.model)
        self._step_if_finite(losses, statistics)
        self.progress.iteration += 1
        self.progress.batch += settings.accumulation
        if self.ema:
            self.ema.update(self.task.model, self.progress.iteration - self.task.start_ite)

    def _statistics(self) -> Tensor:
        """Return a copy of all BatchNorm statistics of the network, in one dimension."""
        return torch.cat([self._losses.new_empty(0), *(buffer.flatten() for buffer in self._buffers)])

    def _step_if_finite(self, losses: Tensor, statistics: Tensor) -> None:
        """Step on the device without waiting for it; :meth:`read_loss` reports what was skipped.

        Args:
            losses: Sum and number of the iteration's losses.
            statistics: Those of before the iteration, which are restored if it is not finite.
        """
        now = self._statistics()
        finite = torch.isfinite(losses[0]) & torch.isfinite(now).all()
        if not self.scaler.is_enabled():  # a scaler skips infinite gradients itself, and meets them as a rule
            gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
            finite = finite & torch.isfinite(torch.stack(torch._foreach_norm(gradients)).sum())
            self.optimizer.found_inf = (~finite).float()  # the fused optimizer then leaves everything as it is
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self._buffers:
            kept = torch.where(finite, now, statistics).split([buffer.numel() for buffer in self._buffers])
            torch._foreach_copy_(self._buffers, [part.view_as(b) for part, b in zip(kept, self._buffers, strict=True)])
        number = torch.where(self._bad[0] > 0, self._bad[1], self.progress.batch)
        self._bad = torch.where(finite, self._bad, torch.stack((self._bad[0] + 1, number)))
        self._losses += torch.where(finite, losses, 0)

    def _lr(self) -> float:
        if not self.task.cosine_decay:
            return self.task.lr
        fraction = min(self.progress.iteration / max(self.task.max_ite, 1), 1)
        return self.task.lr * 0.5 * (1 + math.cos(math.pi * fraction))

    def read_loss(self) -> float:
        """Return and log the mean loss since the last reading.

        Raises:
            TrainingError: If a loss or gradient was not finite, and ``on_nonfinite`` is ``stop``.
        """
        self._check_finite()
        total, number = self._losses.tolist()
        self._losses.zero_()
        if number:
            self.progress.loss = total / number
            self.run.log.loss(self.progress.iteration, self.progress.loss)
        return self.progress.loss

    def _check_finite(self) -> None:
        count, batch = self._bad.tolist()
        if not count:
            return
        self._bad.zero_()
        accumulation = self.run.settings.accumulation
        batches = range(batch, batch + accumulation)
        numbers = f"batch {batch}" if accumulation == 1 else f"batches {batch} to {batches[-1]}"
        message = (
            f"{self.task.name}: loss, gradient or BatchNorm statistics are not finite at iteration "
            f"{self.progress.iteration - (self.progress.batch - batch) // accumulation + 1}, {numbers} "
            f"({', '.join(self._files(batches))})"
        )
        if self.run.settings.on_nonfinite == "skip":
            logger.warning("%s; %d iterations were skipped", message, count)
            return
        raise TrainingError(
            f"{message}; look at these samples, reduce the learning rate, set hypar['model_digit'] to 'full', or "
            f"hypar['on_nonfinite'] to 'skip'. The checkpoints in {self.run.folder} were saved before and are intact"
        )

    def _files(self, batches: Sequence[int]) -> list[str]:
        """Return the names of the samples of some batches, of all processes."""
        loader = self.run.make_train_loader(batches[0])
        return loader.dataset.names([key for batch in batches for key in loader.batch_sampler.batch(batch)])

    @contextmanager
    def failures_saved(self, validation: bool = False) -> Iterator[None]:
        """Save the training if its next step fails for want of memory, or because data cannot be loaded.

        Args:
            validation: Whether a validation may fail instead of a step; the training has then been saved before.

        Raises:
            TrainingError: Says what failed and which settings to change.
        """
        try:
            yield
        except (RuntimeError, MemoryError, OSError, UserError) as error:
            lost = isinstance(error, PeerError) or distributed.is_lost(error)
            remedy = None if lost else find_remedy(error, self.run.settings, validation)
            if not lost and remedy is None:
                raise
            if not validation:
                self._write()
            if lost:
                raise
            iteration = self.progress.iteration
            where = f"validation at iteration {iteration}" if validation else f"iteration {iteration + 1}"
            raise TrainingError(
                f"{self.task.name}, {where}: {remedy}. The training is saved: restore_model={STATE_FILE} resumes it"
            ) from error

    def write_error(self, error: OSError) -> TrainingError:
        """Return the error of a file that could not be written, or read."""
        saved = (self.run.folder / STATE_FILE).is_file()
        what = f"What was saved before is intact: restore_model={STATE_FILE} resumes from it"
        return TrainingError(
            f"{self.task.name}, iteration {self.progress.iteration}: {error}; free space or repair the disk. "
            f"{what if saved else 'Nothing had been saved before: start the training again'}"
        )

    @property
    def validation_is_due(self) -> bool:
        """Whether the network is to be validated at this iteration, and has not been."""
        progress = self.progress
        at_end = progress.iteration % self.run.settings.model_save_fre == 0
        return at_end and progress.validated < progress.iteration and progress.iteration > self.task.start_ite

    def validate(self, stop: StopRequests | None = None) -> None:
        """Score the network on all data sets, log the metrics, and save the weights if they are the best; collective.

        The training has to be saved before.

        Raises:
            StopRequested: If a request to stop arrived; the validation is then repeated when the run is resumed.
            TrainingError: If memory is short, or data cannot be loaded.
        """
        task, run, progress = self.task, self.run, self.progress
        loss = self.read_loss()
        out_dir = run.settings.valid_out_dir if isinstance(task, SegmentationTask) else None
        results, rows = [], []
        for loader in run.valid_loaders:
            with self.failures_saved(validation=True):
                metrics = validate(task, loader, run.device, run.dtype, out_dir, self.ema_model, stop)
            results.append(metrics)
            name = loader.dataset.name
            logger.info("%s, iteration %d, %s: %s", task.name, progress.iteration, name, format_metrics(metrics))
            row = {"phase": task.name, "iteration": progress.iteration, "epoch": progress.epoch}
            row |= {"data_set": name, "loss": loss, **metrics}
            rows.append(row | {"seconds": round(time.perf_counter() - self.started, 1)})
        for row in rows:
            run.log.validation(row)
        metrics = mean_figures(results)
        if progress.record(metrics) and distributed.is_main():
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
        """Whether ``save_minutes`` have passed since the last save, for any process; collective."""
        every = self.run.settings.save_minutes
        return bool(every) and distributed.any_process(time.monotonic() - self._saved >= 60 * every)

    def save(self) -> None:
        """Write ``last.pt``: everything that the run needs to resume; collective.

        Raises:
            TrainingError: If loss, gradient or weights are not finite; the state that was saved before is kept.
            PeerError: If the process that writes could not.
        """
        with distributed.together():
            self._write()

    def _write(self) -> None:
        self._check_finite()
        if not all(_is_finite(tensor) for tensor in self.task.model.state_dict().values()):
            raise TrainingError(
                f"{self.task.name}: the weights are not finite at iteration {self.progress.iteration}; reduce the "
                f"learning rate. The checkpoints in {self.run.folder} were saved before and are intact"
            )
        self._saved = time.monotonic()
        if not distributed.is_main():
            return
        gt_encoder = self.task.gt_encoder
        state = {
            "phase": self.task.name,
            "progress": asdict(self.progress),
            "losses": self._losses.tolist(),
            "model": self.task.model.state_dict(),
            "ema_model": self.ema.model.state_dict() if self.ema else None,
            "gt_encoder": None if gt_encoder is None else gt_encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "metadata": self._metadata(),
            "settings": self.run.settings.as_dict(),
            "datasets": self.run.datasets or None,
        }
        save_state(self.run.folder / STATE_FILE, state)


def _speed(device: torch.device, seconds: float) -> str:
    """Return a line about the time of an iteration and the memory that was used."""
    if device.type == "cuda":
        return (
            f"an iteration takes {seconds:.2f} s; peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
        )
    return f"an iteration takes {seconds:.2f} s"


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")


def find_remedy(error: Exception, settings: Settings, validation: bool) -> str | None:
    """Return what failed in a step or validation and which settings to change; None if the error is of another kind."""
    text = str(error)
    if "DataLoader timed out" in text:
        return (
            f"no batch arrived in {settings.loader_minutes:g} minutes; check the disk of the data, reduce workers "
            f"({settings.workers}), or raise loader_minutes"
        )
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(part in text for part in _OUT_OF_MEMORY):
        batch = f"batch_size_train ({settings.batch_size_train}) and raise accumulation instead"
        if validation:
            batch = f"batch_size_valid ({settings.batch_size_valid})"
        return (
            f"out of memory; reduce {batch}, "
            f"reduce input_size {list(settings.input_size)} or workers ({settings.workers}), or set model_digit to "
            f"'half'{'' if validation or settings.recompute else ' or recompute to True'}"
        )
    if "DataLoader worker" in text and not isinstance(error, UserError):
        reason = text.splitlines()[0]
        return (
            f"a process that loads data ended ({reason}); if memory is short, reduce workers ({settings.workers}), or "
            "set workers=0"
        )
    if isinstance(error, UserError):  # a file that became unreadable; a worker's message contains its traceback
        return text.rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
    return None
