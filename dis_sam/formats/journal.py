"""The journal of a run: which results it has, so that it can be resumed, and which files it wrote."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from IS_Net.errors import DatasetError
from IS_Net.files import sha256
from IS_Net.images import atomic_file

logger = logging.getLogger(__name__)


def digest(*values: Any) -> str:
    """Return a text that changes when one of the values, of which JSON can be made, changes."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


class Journal:
    """A file of JSON lines beside the output. Every change is appended at once, so that a killed run loses nothing.

    Args:
        path: The file; it need not exist. Only one run at a time may write to it.

    Raises:
        DatasetError: If the file exists and is not such a journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, Any] = {}
        self._outputs: dict[str, list[dict[str, Any]]] = defaultdict(list)
        if not path.is_file():
            return
        content = path.read_bytes()
        for number, line in enumerate(content.splitlines(), 1):
            try:
                entry = json.loads(line)
                if "output" in entry:
                    self._outputs[entry["output"]].append(entry)
                else:
                    self.results[entry["key"]] = entry["result"]
            except (ValueError, TypeError, KeyError, RecursionError):
                # a run that is killed while it writes leaves an incomplete line; its result is made again
                logger.warning("%s, line %d: not a complete entry; ignored", path, number)
        if (
            content.strip()
            and not content.startswith((b'{"key"', b'{"output"'))
            and not (self.results or self._outputs)
        ):
            raise DatasetError(f"{path}: is not the journal of an earlier run; rename it, or choose another output")
        self._rewrite()  # an entry must not be appended to an incomplete last line

    def add(self, key: str, result: Any) -> None:
        """Add a result, of which JSON can be made, under what identifies its input; see :func:`digest`."""
        self.results[key] = result
        self._append({"key": key, "result": result})

    def write(self, path: Path, name: str, key: str | None, chunks: Iterable[str]) -> None:
        """Write an output file atomically and note that this run wrote it.

        Args:
            path: The file.
            name: What the journal calls it.
            key: What identifies its input if it is complete, else None; see :meth:`is_complete`.
            chunks: The text, in parts.
        """
        content = hashlib.sha256()
        with atomic_file(path) as file:
            for chunk in chunks:
                data = chunk.encode()
                content.update(data)
                file.write(data)
            # Noted before the file is replaced: a run that is killed in between must recognize its file too.
            entry = {"output": name, "sha256": content.hexdigest(), "key": key}
            self._outputs[name].append(entry)
            self._append(entry)

    def check_output(self, path: Path, name: str, inputs: Collection[Path]) -> None:
        """Check that an output file may be written.

        Raises:
            DatasetError: If it is an input, or exists and was not written by a run with this journal.
        """
        if not path.exists():
            return
        if any(file.exists() and path.samefile(file) for file in inputs):
            raise DatasetError(f"{path}: the output would replace its input; choose another output")
        written = {entry["sha256"] for entry in self._outputs.get(name, ())}
        if path.is_dir() or not written or sha256(path) not in written:
            raise DatasetError(
                f"{path}: exists and was not written by an earlier run, or was changed since then; delete it, or "
                "choose another output"
            )

    def is_complete(self, path: Path, name: str, key: str) -> bool:
        """Return whether an output file exists, complete and unchanged, from the same input."""
        written = {entry["sha256"] for entry in self._outputs.get(name, ()) if entry["key"] == key}
        return bool(written) and path.is_file() and sha256(path) in written

    def compact(self, keys: Collection[str]) -> None:
        """Drop the results with other keys, and all but the last entry of each output file."""
        self.results = {key: self.results[key] for key in self.results if key in keys}
        for entries in self._outputs.values():
            del entries[:-1]
        self._rewrite()

    def _rewrite(self) -> None:
        with atomic_file(self.path, "w") as file:
            for key, result in self.results.items():
                file.write(json.dumps({"key": key, "result": result}) + "\n")
            for entries in self._outputs.values():
                file.writelines(json.dumps(entry) + "\n" for entry in entries)

    def _append(self, entry: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
