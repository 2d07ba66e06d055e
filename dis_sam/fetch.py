"""Download SAM's checkpoints from their publisher (``dis-sam fetch vit_l``).

Nothing is downloaded unless this command is called. A download is written to a partial file beside its target, resumes
after an interruption, and gets its name only when its content is verified.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.parse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dis_sam import __version__
from IS_Net import paths
from IS_Net.command_line import DONE, FAILED, NOT_STARTED, print_error, print_text, run_command
from IS_Net.errors import UserError
from sam.backends import checkpoint_names

if TYPE_CHECKING:
    from email.message import Message

SOURCE = "https://dl.fbaipublicfiles.com/segment_anything"
"""The publisher's folder."""

SHA256 = {
    "sam_vit_b_01ec64.pth": "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    "sam_vit_l_0b3195.pth": "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    "sam_vit_h_4b8939.pth": "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
}
"""Hashes of the published files. The six digits in their names are the start of their MD5, which only detects
accidents; this one also detects a mirror that serves another file."""

TIMEOUT = 30.0
"""Seconds without an answer or without data, after which a connection counts as broken."""
ATTEMPTS = 5
"""How often a download is started if its connection breaks while data arrives."""
PAUSE = 1.0
"""Seconds before the next attempt."""

_CHUNK = 1 << 18
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FetchError(UserError, RuntimeError):
    """A download that cannot start."""


class TransferError(FetchError):
    """A download that started and then failed."""

    exit_code = 1


class _BrokenConnection(Exception):  # noqa: N818 -- caught here; the user sees a TransferError
    """The connection ended before the whole file had arrived."""


class Hashes(NamedTuple):
    """Hashes of a file's content, as hex digits."""

    sha256: str
    md5: str


def hash_file(path: Path) -> Hashes:
    """Return the hashes of a file."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            md5.update(chunk)
    return Hashes(sha256.hexdigest(), md5.hexdigest())


def differs_from_published(hashes: Hashes, name: str) -> str | None:
    """Compare a file's hashes with those of the published checkpoint.

    Args:
        hashes: Of the file.
        name: The published file name, for example ``sam_vit_l_0b3195.pth``: it ends in the first digits of the MD5.

    Returns:
        What was found and expected, or None if the content is the published one.
    """
    digits = Path(name).stem.rpartition("_")[2]
    if not hashes.md5.startswith(digits):
        return f"found the MD5 {hashes.md5}, expected one that starts with {digits}, the digits in the file's name"
    if name in SHA256 and hashes.sha256 != SHA256[name]:
        return f"found the SHA-256 {hashes.sha256}, expected {SHA256[name]}"
    return None


class _Partial:
    """An incomplete file beside its target, with what the server said about the whole file.

    Its name is that of the target with ``.part`` behind it, so nothing takes it for the checkpoint. A second file,
    ``.part.json``, holds the address, the size, and the validator: the value of If-Range, with which a server sends
    the rest of the file only if the file is still the same.
    """

    def __init__(self, target: Path, url: str) -> None:
        self.target, self.url = target, url
        self.path = target.with_name(f"{target.name}.part")
        self._record = target.with_name(f"{target.name}.part.json")
        self.size: int | None = None
        self.validator: str | None = None
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
            known = record["url"] == url and (record["size"] is None or self.offset <= record["size"])
            if known:
                self.size, self.validator = record["size"], record["validator"]
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if not known:  # nothing says what these bytes are the beginning of
            self.discard()

    @property
    def offset(self) -> int:
        """Number of bytes that have arrived."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def begin(self, headers: Message) -> None:
        """Start the file at its first byte, with the headers of the response that sends all of it."""
        self.discard()
        length, etag = headers.get("Content-Length", ""), headers.get("ETag", "")
        self.size = int(length) if length.isdecimal() else None
        # If-Range requires a strong validator; a weak ETag begins with W/
        self.validator = etag if etag.startswith('"') else headers.get("Last-Modified")
        self.target.parent.mkdir(parents=True, exist_ok=True)
        record = {"url": self.url, "size": self.size, "validator": self.validator}
        self._record.write_text(json.dumps(record), encoding="utf-8")

    def discard(self) -> None:
        """Remove both files."""
        self.size = self.validator = None
        self.path.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the file, which is complete, the name of its target."""
        self.path.replace(self.target)
        self._record.unlink(missing_ok=True)
        if hasattr(os, "O_DIRECTORY"):  # the new name reaches the disk as well
            folder = os.open(self.target.parent, os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def fetch(name: str, folder: Path, source: str = SOURCE, force: bool = False) -> bool:
    """Download a checkpoint, or the rest of it, and verify it.

    Args:
        name: The published file name.
        folder: Where to write it; it may not exist yet.
        source: Address of the folder that holds the file, ``http://`` or ``https://``.
        force: Whether to replace a file of this name that has other content.

    Returns:
        Whether something was downloaded; False if the file already exists and has the published content.

    Raises:
        FetchError: If the download cannot start: the folder cannot be written, a file of this name has other content,
            the disk has too little space, or the server does not answer or has no such file.
        TransferError: If it started and then failed: the connection broke, the disk is full, or the content is wrong.
    """
    target = folder / name
    if target.is_dir():
        raise FetchError(f"{target}: found a folder, expected a file or nothing; rename it, or choose another --out")
    if target.is_file():
        difference = differs_from_published(hash_file(target), name)
        if difference is None:
            return False
        if not force:
            raise FetchError(
                f"{target}: the file exists and is not the published checkpoint ({difference}); move it away, or "
                "replace it with --force"
            )
    base = _existing_parent(folder)
    if not base.is_dir() or not os.access(base, os.W_OK | os.X_OK):
        what = "is not writable" if base.is_dir() else "is a file"
        raise FetchError(f"{folder}: cannot be written, because {base} {what}; choose another folder with --out DIR")
    partial = _Partial(target, f"{source.rstrip('/')}/{name}")
    try:
        _download(partial)
        size, difference = partial.offset, differs_from_published(hash_file(partial.path), name)
        if difference is not None:
            partial.discard()
            raise TransferError(
                f"{partial.url}: the content is not the published checkpoint ({size} bytes; {difference}); it was "
                "removed. Run the command again; if this repeats, check whether a proxy or mirror serves another file"
            )
        partial.finish()
    except OSError as error:
        raise _write_error(partial, error) from error
    return True


def _download(partial: _Partial) -> None:
    """Complete the partial file, with several attempts if the connection breaks."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _transfer(partial)
        except _BrokenConnection as error:
            arrived = f"{_size_text(partial.offset)} of {_size_text(partial.size)}"
            if attempt == ATTEMPTS:
                raise TransferError(
                    f"{partial.url}: the connection ended after {arrived} ({error}), {ATTEMPTS} times in all; "
                    "the same command resumes the download"
                ) from error
            print_error(f"the connection ended after {arrived} ({error}); next attempt", prefix="")
            time.sleep(PAUSE)


def _transfer(partial: _Partial) -> None:
    """Request what is missing of the partial file and append it.

    Raises:
        _BrokenConnection: If the connection ends before the file is complete.
    """
    offset = partial.offset
    if offset and offset == partial.size:
        return
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    if offset and partial.validator:
        headers["If-Range"] = partial.validator
    response = _open(partial, headers)
    if response is None or (response.status == 206 and not (offset and _continues(response.headers, partial))):
        partial.discard()  # the file became shorter, or another one
        if response is not None:
            response.close()
        if not offset:
            raise FetchError(f"{partial.url}: the server did not send the whole file; use another --url")
        return _transfer(partial)
    with response:
        if response.status == 206:
            print_text(f"{partial.target.name}: resumes at {_size_text(offset)} of {_size_text(partial.size)}")
        else:
            if offset:
                print_text(f"{partial.target.name}: starts again: the server's file changed, or it cannot resume")
            partial.begin(response.headers)
            print_text(f"{partial.target.name}: {_size_text(partial.size)} from {partial.url}")
        _check_space(partial)
        _copy(response, partial)
    if partial.size is not None and partial.offset < partial.size:
        raise _BrokenConnection("it was closed early")


def _open(partial: _Partial, headers: dict[str, str]) -> http.client.HTTPResponse | None:
    """Request a file; return None if the requested range does not exist.

    Proxies are those of the environment (HTTPS_PROXY, HTTP_PROXY, NO_PROXY).
    """
    import urllib.error
    import urllib.request

    # identity: the range and the size count bytes of the file itself
    headers = {"User-Agent": f"dis-sam/{__version__}", "Accept-Encoding": "identity", **headers}
    request = urllib.request.Request(partial.url, headers=headers)
    elsewhere = (
        f"or download {partial.target.name} elsewhere and copy it into {partial.target.parent}, or use a mirror (--url)"
    )
    try:
        return urllib.request.build_opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            return None
        raise FetchError(
            f"{partial.url}: the server answered {error.code} {error.reason}, expected the file; try again later, "
            f"{elsewhere}"
        ) from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise FetchError(
            f"{partial.url}: no connection ({reason}); check the network and the proxy settings (HTTPS_PROXY, "
            f"HTTP_PROXY, NO_PROXY), {elsewhere}. The same command resumes a download"
        ) from error


def _continues(headers: Message, partial: _Partial) -> bool:
    """Return whether a response of status 206 holds the rest of the partial file."""
    units, _, rest = headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    same_size = total == "*" or partial.size is None or total == str(partial.size)
    return units == "bytes" and span.partition("-")[0] == str(partial.offset) and same_size


def _copy(response: http.client.HTTPResponse, partial: _Partial) -> None:
    """Append the body of a response to the partial file."""
    from tqdm import tqdm

    name, size, offset = partial.target.name, partial.size, partial.offset
    with (
        partial.path.open("ab") as file,
        tqdm(desc=name, total=size, initial=offset, unit="B", unit_scale=True, disable=None) as bar,
    ):
        while chunk := _read(response):
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenConnection(str(error) or type(error).__name__) from error


def _check_space(partial: _Partial) -> None:
    """Raise FetchError if the disk cannot hold what is missing; a size that the server does not give is not checked."""
    if partial.size is None:
        return
    needed, free = partial.size - partial.offset, shutil.disk_usage(partial.target.parent).free
    if free < needed:
        if not partial.offset:
            partial.discard()
        raise FetchError(
            f"{partial.target}: found {_size_text(free)} of free disk space, expected at least {_size_text(needed)}; "
            "delete files there, or choose another folder with --out DIR"
        )


def _write_error(partial: _Partial, error: OSError) -> FetchError:
    """Return the error to raise if a file cannot be written."""
    if error.errno in _NO_SPACE:
        return TransferError(
            f"{partial.target}: the disk is full ({error.strerror}) after {_size_text(partial.offset)} of "
            f"{_size_text(partial.size)}; delete files there and run the same command again, which resumes, or choose "
            "another folder with --out DIR"
        )
    return FetchError(f"{partial.target}: cannot be written ({error}); choose another folder with --out DIR")


def _existing_parent(folder: Path) -> Path:
    """Return the folder, or the nearest of its parents that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _size_text(size: int | None) -> str:
    from tqdm import tqdm

    return "an unknown size" if size is None else f"{tqdm.format_sizeof(size)}B"


def _address(text: str) -> str:
    """Check the argument of --url."""
    try:
        address = urllib.parse.urlsplit(text)
        valid = address.scheme in ("http", "https") and bool(address.hostname)
        _ = address.port  # a ValueError if it is no number
    except ValueError:
        valid = False
    if not valid:
        raise argparse.ArgumentTypeError(f"expected an address that starts with http:// or https://, found {text!r}")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dis-sam fetch",
        description="Download SAM's checkpoints and verify them. After an interruption, the same command resumes.",
        epilog="Proxies are taken from the environment: HTTPS_PROXY, HTTP_PROXY, NO_PROXY.",
    )
    models = list(checkpoint_names())
    parser.add_argument("models", nargs="+", choices=models, metavar="MODEL", help=", ".join(models))
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the files; default: saved_models in the folder that dis-sam check names as home",
    )
    parser.add_argument("--force", action="store_true", help="replace a file of the same name that has other content")
    parser.add_argument(
        "--url", type=_address, default=SOURCE, help="folder to download from, of a mirror; default: %(default)s"
    )
    return parser


def _folder(name: str) -> Path:
    """Return where a checkpoint goes by default: where one of its name lies already, else ``saved_models``."""
    found = (folder for folder in paths.sam_checkpoint_folders() if (folder / name).is_file())
    return next(found, paths.saved_models())


def _run(options: argparse.Namespace) -> int:
    codes = []
    models = list(dict.fromkeys(options.models))
    for model in models:
        name = checkpoint_names()[model]
        folder = options.out or _folder(name)
        try:
            new = fetch(name, folder, options.url, options.force)
        except (FetchError, OSError) as error:  # the other models may still succeed
            print_error(str(error))
            codes.append(getattr(error, "exit_code", NOT_STARTED))
            continue
        print_text(f"{folder / name}: {'verified' if new else 'already there, verified'}")
        if folder.resolve() not in (known.resolve() for known in paths.sam_checkpoint_folders()):
            print_text(
                f"  checkpoints are not looked for in this folder; name it with the model: MODEL={folder / name}"
            )
    if len(codes) < len(models) and find_spec("segment_anything") is None:
        print_text("SAM also needs its package: pip install 'dis-sam[sam]'")
    if not codes:
        return DONE
    return NOT_STARTED if codes == [NOT_STARTED] * len(models) else FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 all checkpoints are there and verified, 1 some failed, 2 none could start, 130 interrupted.
    """
    options = _parser().parse_args(argv)
    return run_command(
        lambda: _run(options), "interrupted; what was downloaded is kept, and the same command resumes the download"
    )
