"""The errors that a user can correct. Their messages name the file or key, what was found, and the remedy.

Commands print them without a traceback (:mod:`IS_Net.command_line`). This module imports nothing heavy.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType

_MAX_LISTED = 80
"""Names in a message."""


class UserError(Exception):
    """Base class of all errors that a user can correct."""

    exit_code = 2
    """Of a command that ends with this error: 2 = it could not start, 1 = it started, and then failed."""


class HyparError(UserError, ValueError):
    """A setting that is unknown, of a wrong type, or out of range."""


class DatasetError(UserError, ValueError):
    """A data set whose description, folders or files are not as expected."""


class UnusableSamplesError(DatasetError):
    """A data set with files that cannot be read, or with prompts outside their images; the others could be used."""


class FolderInUseError(UserError, RuntimeError):
    """A folder that another process is writing to."""


class ImageError(UserError, ValueError):
    """A file that is missing, damaged, or not an image."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or a folder that does not exist."""


class BoxError(UserError, ValueError):
    """A box that is not four numbers, has no area, or lies outside its image."""


class PromptError(UserError, ValueError):
    """Prompts that cannot be used."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, damaged, or belongs to another network."""


class DeviceError(UserError, RuntimeError):
    """A device or a precision that was requested and is not available."""


class EvaluationError(UserError, ValueError):
    """Folders or files that cannot be scored."""


class TrainingError(UserError, RuntimeError):
    """A training run that cannot continue."""

    exit_code = 1


class ScoringError(UserError, RuntimeError):
    """A scoring run that cannot continue."""

    exit_code = 1


class StoppedError(UserError, OSError):
    """Work that cannot go on because its record cannot be written; what is recorded is kept."""

    exit_code = 1


class PeerError(UserError, RuntimeError):
    """A run of several processes in which another one has failed."""

    exit_code = 1


class MissingExtraError(UserError, ImportError):
    """A package that an optional feature needs and that is not installed."""


def import_extra(module: str, extra: str) -> ModuleType:
    """Import a module that one of the project's extras installs.

    Args:
        module: Its dotted name.
        extra: The extra's name in ``pyproject.toml``.

    Raises:
        MissingExtraError: If the package is not installed; the message holds the ``pip install`` line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MissingExtraError(
            f"the package {package!r} is not installed, and this feature needs it; "
            f"install it with: pip install 'dis-sam[{extra}]'"
        ) from error


def did_you_mean(found: object, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return the end of a message about an unknown name: ``; did you mean 'x'?``, or a list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(str(found), names, n=1, cutoff=cutoff)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known names: {join_some(names, _MAX_LISTED)}"


def join_some(items: Sequence[str], most: int = 10) -> str:
    """Return items as messages list them: the first ones, and the number of the others, as in ``a, b and 3 more``."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
