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
from types import TracebackType

from IS_Net.errors import UserError

DONE, FAILED, NOT_STARTED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a command answers as it does Ctrl-C."""


def run_command(command: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Run a command and turn its errors into messages and exit codes.

    Args:
        command: Does the work and returns the exit code.
        interrupted: What to print after Ctrl-C, for example that the same command resumes.

    Returns:
        The exit code: the command's own, that of its error, 130 after Ctrl-C, or 143 after SIGTERM.
    """
    answer_interrupts()
    escape_unprintable()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with _sigterm_raises():
            return command()
    except UserError as error:
        print_error(str(error))
        return error.exit_code
    except OSError as error:
        print_error(str(error))
        return NOT_STARTED
    except Terminated:
        print_error(interrupted.replace("interrupted", "terminated", 1), prefix="")
        return TERMINATED
    except KeyboardInterrupt:
        print_error(interrupted, prefix="")
        return INTERRUPTED


def answer_interrupts() -> None:
    """Let Ctrl-C end the process with a message and exit code 130 also outside of :func:`run_command`.

    Programs call it before their heavy imports, which take seconds.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _end_if_interrupted


def _end_if_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print_error("interrupted", prefix="")
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or none
            stream.flush()
    os._exit(INTERRUPTED)  # at a normal exit, Python would end the process by the signal, with another code


def escape_unprintable() -> None:
    """Let the standard streams escape characters that their encoding does not have, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Raise :class:`Terminated` at SIGTERM, unless the signal is handled or ignored already."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(_number: int, _frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
