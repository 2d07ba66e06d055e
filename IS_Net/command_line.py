"""What all commands share: the exit codes, the messages of errors, and argument types.

Exit codes: 0 = done; 1 = some items failed, each named; 2 = the command could not start; 130 = interrupted by Ctrl-C;
143 = ended by SIGTERM.
This module imports nothing heavy, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from IS_Net.errors import UserError

DONE, FAILED, NOT_STARTED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a command answers as it does Ctrl-C."""


def run_command(command: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Run a command and turn its errors into messages and exit codes.

    Args:
        command: Does the work and returns the exit code.
        interrupted: What to print after Ctrl-C, for example that the same command resumes; a KeyboardInterrupt with a
            text of its own replaces it. After SIGTERM, it says "terminated".

    Returns:
        The exit code: the command's own, that of its error, 130 after Ctrl-C, or 143 after SIGTERM.
    """
    _replace_excepthook()
    escape_unprintable()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with _signals_answered(interrupted):
            return command()
    except UserError as error:
        print_error(str(error))
        return error.exit_code
    except OSError as error:
        print_error(str(error))
        return NOT_STARTED
    except KeyboardInterrupt as error:
        print_error(_end_of(error, interrupted), prefix="")
        return _code_of(error)


def answer_interrupts() -> None:
    """Let Ctrl-C and SIGTERM end the process with a message and their exit codes also outside of :func:`run_command`.

    Programs call it before their heavy imports, which take seconds.
    """
    _replace_excepthook()
    _install(_Answer("interrupted"))


def _replace_excepthook() -> None:
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _end_if_interrupted


def _end_if_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _end_process(error, "interrupted")


def _end_process(error: KeyboardInterrupt, interrupted: str) -> None:
    print_error(_end_of(error, interrupted), prefix="")
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or none
            stream.flush()
    os._exit(_code_of(error))  # at a normal exit, Python would end the process by the signal, with another code


def _end_of(error: KeyboardInterrupt, interrupted: str) -> str:
    message = str(error) or interrupted
    return message.replace("interrupted", "terminated", 1) if isinstance(error, Terminated) else message


def _code_of(error: KeyboardInterrupt) -> int:
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


class _Answer:
    """A signal handler: it raises KeyboardInterrupt or :class:`Terminated`.

    While a module is imported, it ends the process instead. The compiled parts of PyTorch and NumPy run Python code
    during their import, and an exception there is swallowed, so that the command continues, or aborts the process.
    What the command writes is safe: it may be killed at any time.

    Args:
        interrupted: The message.
    """

    def __init__(self, interrupted: str) -> None:
        self.interrupted = interrupted

    def __call__(self, number: int, frame: FrameType | None) -> None:
        error = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                _end_process(error, self.interrupted)
            frame = frame.f_back
        raise error


def _install(answer: _Answer) -> dict[signal.Signals, Any]:
    """Install a handler of Ctrl-C and SIGTERM where another program's is not; return the handlers that it replaced."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: old for number, old in found.items() if old in defaults or isinstance(old, _Answer)}
    for number in before:
        signal.signal(number, answer)
    return before


@contextmanager
def _signals_answered(interrupted: str) -> Iterator[None]:
    before = _install(_Answer(interrupted))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_held() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C and SIGTERM wait, while a process is started for example, until the block ends.

    Yields:
        A function that answers one that has come, as before the block, and holds no further ones.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    received: list[int] = []
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: old for number, old in found.items() if old is not signal.SIG_IGN}  # new processes inherit that
    for number in before:
        signal.signal(number, lambda number, _: received.append(number))

    def release() -> None:
        while before:
            number, handler = before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if received:
            number = received[0]
            received.clear()
            signal.raise_signal(number)

    try:
        yield release
    finally:
        release()


def escape_unprintable() -> None:
    """Let the standard streams escape characters that their encoding does not have, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_error(message: str, prefix: str = "error: ") -> None:
    """Print a message to stderr, with escapes for characters that its encoding does not have."""
    print_text(f"{prefix}{message}", sys.stderr)


def print_text(text: str, file: object = None) -> None:
    """Print a text, with escapes for characters that the stream's encoding does not have."""
    stream = sys.stdout if file is None else file
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def positive_int(text: str) -> int:
    """Convert a command-line argument to an integer above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer above 0, found {text!r}")
    return int(text)


def non_negative_int(text: str) -> int:
    """Convert a command-line argument to an integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, found {text!r}")
    return int(text)
