"""What an output says about how it was made, as a text in its PNG file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dis_sam import __version__
from IS_Net.images import read_png_text

_END = b"\0\0\0\0IEND\xaeB`\x82"
"""The last chunk of a PNG file: length, type, checksum."""

KEYWORD = "dis-sam"
"""Keyword of the text in a PNG file by which an output of this project is recognized."""


def read_record(path: Path) -> dict[str, Any] | None:
    """Return what an output says about how it was made, or None if this project did not write the file.

    Returns:
        ``fingerprint``: what it was made from; ``source``: the photograph's file name, or None; ``version``.
    """
    text = read_png_text(path, KEYWORD) if path.is_file() else None
    try:
        record = json.loads(text or "")
        return record if isinstance(record, dict) and {"fingerprint", "source"} <= record.keys() else None
    except (ValueError, RecursionError):
        return None


def is_whole(path: Path) -> bool:
    """Return whether a PNG file ends as such files do; one that a copy cut off does not."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - len(_END), 0))
        return file.read() == _END


def make_record(made_from: str, source: Path | bytes) -> str:
    """Return the text that :func:`read_record` reads.

    Args:
        made_from: The fingerprint of what the output was made from.
        source: The photograph: its file, or the content of one that has no name.
    """
    name = source.name if isinstance(source, Path) else None
    return json.dumps({"fingerprint": made_from, "source": name, "version": __version__})
