"""Where outputs go, and which files they may replace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dis_sam.inputs import Request, Task, inputs_of
from dis_sam.outputs import OutputError, file_label
from dis_sam.records import is_whole, read_record
from IS_Net.errors import join_some
from IS_Net.files import atomic_file, require_writable
from IS_Net.images import IMAGE_EXTENSIONS


class Destination:
    """Where the outputs go.

    - Without a folder: beside the photograph, as ``NAME.cutout.png``, ``NAME.alpha.png`` and so on.
    - In a folder: ``NAME.png``; if there are several kinds, ``NAME.cutout.png`` and so on. Folders of the photographs
      are kept.
    - A path that ends in ``.png`` and is no folder is the file of a single output.

    Args:
        out: The folder or file, or None.
        kinds: The kinds of outputs.
    """

    def __init__(self, out: Path | None, kinds: Sequence[str]) -> None:
        self.out, self.kinds = out, tuple(kinds)
        self.is_file = out is not None and out.suffix.lower() in IMAGE_EXTENSIONS and not out.is_dir()
        if self.is_file and out.suffix.lower() != ".png":
            raise OutputError(f"{out}: outputs are PNG files; expected a name that ends in .png, or a folder")

    def path(self, task: Task, request: Request, kind: str) -> Path:
        """Return the file of an output."""
        if self.is_file:
            return self.out
        if self.out is None:
            return task.image.with_name(f"{Path(request.name).name}.{file_label(kind)}.png")
        label = f".{file_label(kind)}" if len(self.kinds) > 1 else ""
        return self.out / f"{request.name}{label}.png"

    def paths(self, task: Task) -> Iterator[Path]:
        """Yield the files of all outputs of a photograph."""
        for request in task.requests:
            for kind in self.kinds:
                yield self.path(task, request, kind)

    def holds(self, path: Path, made_from: str) -> bool:
        """Return whether a whole output exists that was made from what this fingerprint says."""
        return (read_record(path) or {}).get("fingerprint") == made_from and is_whole(path)

    def write(self, path: Path, data: bytes) -> None:
        """Write an output."""
        with atomic_file(path) as file:
            file.write(data)

    def check(self, tasks: Sequence[Task], overwrite: bool = False, inputs: Iterable[Path] = ()) -> None:
        """Check that all outputs may be written, before anything is; see the methods that it calls."""
        self.check_names(tasks, inputs)
        self.check_foreign(tasks, overwrite)

    def check_names(self, tasks: Sequence[Task], inputs: Iterable[Path] = ()) -> None:
        """Check that no output is an input or another output, and that those that are missing can be written.

        Args:
            tasks: What is to be done.
            inputs: Files that are read, beside those of the tasks.

        Raises:
            OutputError: If outputs would replace inputs or each other; the message names the files.
            OSError: If a folder cannot be made or written to; the message names it.
        """
        owners: dict[Path, str] = {}
        doubled, existing = [], []
        folders: dict[Path, Path] = {}
        for task in tasks:
            for path in self.paths(task):
                if path in owners:
                    doubled.append(f"{path} (of {owners[path]} and {task.where})")
                owners[path] = task.where
                if _exists(path):
                    existing.append(path)
                else:
                    folders.setdefault(path.parent, path)
        for path in folders.values():
            require_writable(path)
        if doubled and self.is_file:
            raise OutputError(f"{self.out}: is one file, but there are {len(doubled) + 1} outputs; expected a folder")
        if doubled:
            raise OutputError(
                f"several outputs would have the same name: {join_some(doubled)}; write them to other folders"
            )
        if existing:  # only then are the inputs looked up
            used = {_identity(path) for path in (*inputs_of(tasks), *inputs) if path.is_file()}
            replaced = [str(path) for path in existing if _identity(path) in used]
            if replaced:
                raise OutputError(
                    f"outputs would replace input files: {join_some(replaced)}; write them elsewhere with -o"
                )

    def check_foreign(self, tasks: Iterable[Task], overwrite: bool = False) -> None:
        """Check that no output replaces a file that this project did not write.

        Args:
            tasks: What is to be done.
            overwrite: Whether such files may be replaced; folders may not.

        Raises:
            OutputError: If there are such files; the message names them.
        """
        existing = (path for task in tasks for path in self.paths(task) if _exists(path))
        foreign = [str(path) for path in existing if path.is_dir() or not (overwrite or read_record(path))]
        if foreign:
            raise OutputError(
                f"files exist that dis-sam did not write: {join_some(foreign)}; use --overwrite to replace them, or "
                "write the outputs elsewhere with -o"
            )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long; its photograph fails when it is written
        return False


def _identity(path: Path) -> tuple[int, int]:
    """Return what all names of a file share: links, and other spellings where case does not matter."""
    status = path.stat()
    return status.st_dev, status.st_ino
