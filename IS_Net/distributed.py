"""The processes that torchrun starts for one run, and what they exchange: the only module that uses torch.distributed.

Each process (rank) runs the same script. Data-parallel training divides every batch among them, and sums the gradients
so that all hold the same weights; validation divides the images. Rank 0 is the main process: it alone prints, logs and
writes checkpoints. Without torchrun there is one process, and every function here then returns at once what it is
given, so that the callers need not distinguish.

All processes have to call the functions that exchange something, marked as collective, in the same order.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from IS_Net.command_line import INTERRUPTED, TERMINATED, Terminated
from IS_Net.errors import HyparError, PeerError, UserError
from IS_Net.machine import launched_processes

T = TypeVar("T")

_PATIENCE = timedelta(days=1)  # of the small exchanges, in which processes wait while another one builds a cache
_VALUES = (0, 2, 3)  # the dimensions of (B, C, H, W) over which BatchNorm takes statistics
_GRACE = 2.0  # seconds that failing processes wait for each other
_VARIABLES = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_control: dist.ProcessGroup | None = None  # for numbers and objects on the CPU, while the default group has gradients
_store: dist.Store | None = None


def size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if _control is not None else 1


def rank() -> int:
    """Return the number of this process, from 0 on."""
    return dist.get_rank() if _control is not None else 0


def is_main() -> bool:
    """Return whether this is the process that prints, logs and writes."""
    return rank() == 0


def processes_here() -> int:
    """Return the number of processes of the run on this machine, which share its cores and memory."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if _control is not None else 1


def share(length: int) -> range:
    """Return the numbers below ``length`` that are this process's share: every ``size()``-th, from ``rank()`` on."""
    return range(rank(), length, size())


def local_device(name: str) -> str:
    """Return the device of this process for the setting ``device``: on CUDA, one GPU for each process of a machine.

    Raises:
        HyparError: If several processes would use the same device.
    """
    if size() == 1:
        return name
    if name in ("auto", "cuda"):
        available = torch.cuda.is_available()
        return f"cuda:{os.environ['LOCAL_RANK']}" if available else "cpu" if name == "auto" else name
    if name != "cpu":
        raise HyparError(
            f"hypar['device']: {name!r} is one device, and {size()} processes would share it; use auto, cuda or cpu"
        )
    return name


def require_divisible(key: str, number: int) -> None:
    """Check that a number of samples can be divided evenly among the processes.

    Raises:
        HyparError: If it cannot; the message names the setting ``key``.
    """
    if number % size():
        below, above = number - number % size(), number + size() - number % size()
        raise HyparError(
            f"hypar[{key!r}]: {number} is the number of samples of all {size()} processes together, and cannot be "
            f"divided by {size()}; use {f'{below} or ' if below else ''}{above}, or another number of processes"
        )


# --- begin and end --------------------------------------------------------------------------------------------------


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes that torchrun has started; collective. Without torchrun, nothing happens.

    Inside, processes other than the main one neither print nor log. If processes fail, only the
    first one to fail raises its error; the others end quietly, with a nonzero exit code.

    Raises:
        HyparError: If the variables of the environment that torchrun sets are incomplete.
        PeerError: If another process ended without an error of its own, for example because it was killed.
    """
    if launched_processes() == 1 or dist.is_initialized():
        yield
        return
    if missing := [name for name in _VARIABLES if name not in os.environ]:
        raise HyparError(
            f"WORLD_SIZE is {launched_processes()}, but {', '.join(missing)} is not set; start the processes with "
            "torchrun, or unset WORLD_SIZE to run a single one"
        )
    _start()
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        try:
            with nullcontext() if is_main() else redirect_stdout(nowhere), _logging_of_main():
                yield
                highest(0)  # no process leaves while another one still works
        except SystemExit:
            raise
        except BaseException as error:
            lost = is_lost(error)
            if isinstance(error, PeerError) or not _is_first_to_fail():
                _leave(error)
            if lost:
                raise PeerError(
                    "another process of this run ended without a message; if it was killed for want of memory, reduce "
                    "workers or batch_size_train"
                ) from error
            raise
    _stop()


def _start() -> None:
    global _control, _store
    store, number, total = next(dist.rendezvous("env://"))
    _store = dist.PrefixStore("dis-sam", store)
    # gradients on GPUs go over nccl, everything on the CPU over gloo
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=total)
    _control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    # of weights with one input channel, whose strides are ambiguous
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")


def _stop() -> None:
    global _control, _store
    dist.destroy_process_group()
    _control = _store = None


@contextmanager
def _logging_of_main() -> Iterator[None]:
    before = logging.root.manager.disable
    if not is_main():
        logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _is_first_to_fail() -> bool:
    """Return whether no other process has failed before, so that the error of this one is the one to be told."""
    try:
        before = _store.add("failed", 1) - 1
        # without torchrun's own store, it ends with the main process, and the others could not ask any more
        end = time.monotonic() + (0 if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else _GRACE)
        while is_main() and _store.add("failed", 0) < size() and time.monotonic() < end:
            time.sleep(0.02)
    except (RuntimeError, OSError):  # the process that held the store has ended
        return True
    return before == 0


def _leave(error: BaseException) -> None:
    """End this process because another one failed. A normal exit may wait for exchanges that never end."""
    with suppress(KeyboardInterrupt):  # of torchrun, which ends all processes as soon as one has failed: so the first
        time.sleep(_GRACE)  # one, which tells its error, has to be the first one to end
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if isinstance(error, KeyboardInterrupt):
        os._exit(TERMINATED if isinstance(error, Terminated) else INTERRUPTED)
    os._exit(error.exit_code if isinstance(error, UserError) else 1)


def is_lost(error: BaseException) -> bool:
    """Return whether an exchange failed because another process has ended."""
    if size() == 1 or isinstance(error, UserError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(part in str(error) for part in ("gloo", "NCCL", "Connection"))


# --- small exchanges ------------------------------------------------------------------------------------------------


def highest(number: int) -> int:
    """Return the highest of the processes' numbers; collective."""
    return _reduced(number, dist.ReduceOp.MAX)


def any_process(flag: bool) -> bool:
    """Return whether a flag is set in any process; collective."""
    return bool(highest(int(flag)))


def total(number: int) -> int:
    """Return the sum of the processes' numbers; collective."""
    return _reduced(number, dist.ReduceOp.SUM)


def _reduced(number: int, operation: Any) -> int:
    if size() == 1:
        return number
    value = torch.tensor(number)
    dist.all_reduce(value, operation, _control)
    return int(value)


@contextmanager
def together() -> Iterator[None]:
    """Run a block in all processes, and let none continue if it fails in one of them; collective.

    Raises:
        PeerError: If the block failed in other processes only.
    """
    if size() == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        if not is_lost(error):
            highest(1)
        raise
    if highest(0):
        raise PeerError("another process of this run failed")


def gather_shares(items: Sequence[T]) -> list[T]:
    """Put together what each process has for its :func:`share`, in the order of the numbers; collective.

    Args:
        items: One item for each number of the share. They can be pickled, and hold no tensors on a GPU.
    """
    shares = _gather(items)
    return [shares[number % size()][number // size()] for number in range(sum(map(len, shares)))]


def gather_lists(items: Sequence[T]) -> list[T]:
    """Return the items of all processes, those of one process after those of the other; collective."""
    return [item for part in _gather(items) for item in part]


def _gather(items: Sequence[T]) -> list[list[T]]:
    parts: list[Any] = [list(items)] * size()
    if size() > 1:
        dist.all_gather_object(parts, list(items), _control)
    return parts


def mean(tensor: Tensor) -> Tensor:
    """Return the mean of the processes' tensors of one shape, on their device; collective."""
    if size() == 1:
        return tensor
    result = tensor.detach().clone()
    dist.all_reduce(result)
    return result / size()


# --- data-parallel training -----------------------------------------------------------------------------------------


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a network to be called in training, whose backward pass leaves the mean of the processes' gradients.

    Args:
        model: The network, on its device. It gets the weights and buffers of the main process.
        device: The device.
    """
    if size() == 1:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch 2.15 begins to rename broadcast_buffers
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # synchronize_batchnorm or average_buffers keeps them equal
            gradient_as_bucket_view=True,
        )


def unsynchronized(network: nn.Module, active: bool) -> AbstractContextManager:
    """Return a context in which gradients of a network from :func:`parallel` are summed up but not exchanged.

    Args:
        network: The network. Forward and backward pass have to be in the context.
        active: False exchanges them all the same.
    """
    return network.no_sync() if active and isinstance(network, DistributedDataParallel) else nullcontext()


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Replace the floating-point buffers of a network by their means over the processes; collective."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if size() == 1 or not buffers:
        return
    means = mean(torch.cat([buffer.flatten() for buffer in buffers]))
    for buffer, value in zip(buffers, means.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(value.view_as(buffer))


def synchronize_batchnorm(model: nn.Module, device: torch.device) -> None:
    """Let BatchNorms normalize with the statistics of the samples of all processes while they are trained.

    Args:
        model: The network; its BatchNorms are replaced, and keep their names, parameters and buffers.
        device: The device of the network. PyTorch has such a layer for GPUs only.
    """
    if size() == 1:
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if type(layer) is nn.BatchNorm2d:
                setattr(module, name, _SyncBatchNorm(layer))


class _SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm with the statistics of all processes, on any device and for any number of samples, 0 included."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum)
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        mean, variance, count = _batch_statistics(x)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
        return _Normalize.apply(x, self.weight, self.bias, mean, variance, count, self.eps)


def _wide(x: Tensor) -> Tensor:
    """Return a tensor in float32, or float64 if it is in that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@torch.no_grad()
def _batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return mean and biased variance of each channel, (C,), and the number of values, over all processes."""
    values = x.numel() / x.shape[1]
    sums = x.new_zeros((2, x.shape[1]), dtype=torch.float64)
    if values:
        variance, mean = (part.double() for part in torch.var_mean(_wide(x), dim=_VALUES, correction=0))
        sums = torch.stack((mean, variance + mean.square())) * values  # float64: differences of squares lose digits
    content = torch.cat((sums.flatten(), sums.new_tensor([values])))
    dist.all_reduce(content)
    count = content[-1].item()
    mean, square = content[:-1].view(2, -1) / count
    dtype = _wide(x[:0]).dtype
    return mean.to(dtype), (square - mean.square()).clamp(min=0).to(dtype), count


class _Normalize(torch.autograd.Function):
    """Normalization by statistics of all processes; its gradient takes into account that they depend on the input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, count: float, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps))
        ctx.count = count
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        gradient = _wide(gradient)
        normalized = (x - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)
        of_bias, of_weight = gradient.sum(_VALUES), (gradient * normalized).sum(_VALUES)
        sums = torch.stack((of_bias, of_weight)).double()
        dist.all_reduce(sums)
        shift, slope = (sums / ctx.count).to(mean.dtype).view(2, 1, -1, 1, 1)
        of_x = (gradient - shift - normalized * slope) * (weight * scale).view(1, -1, 1, 1)
        return of_x.to(x.dtype), of_weight, of_bias, None, None, None, None
