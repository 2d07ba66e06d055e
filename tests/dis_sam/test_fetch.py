"""The command dis-sam fetch, against a server on this machine."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dis_sam import fetch as module
from dis_sam.fetch import SHA256, FetchError, TransferError, differs_from_published, fetch, hash_file, main
from sam.backends import checkpoint_names

CONTENT = b"".join(hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(20_000))
"""What the server publishes: 640 kB."""
NAME = f"sam_vit_l_{hashlib.md5(CONTENT).hexdigest()[:6]}.pth"
SMALL = b"the weights of a smaller model"
SMALL_NAME = f"sam_vit_b_{hashlib.md5(SMALL).hexdigest()[:6]}.pth"


class Server(ThreadingHTTPServer):
    """A server whose behavior a test sets; it records the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {NAME: CONTENT, SMALL_NAME: SMALL}
        self.etag: str | None = '"first"'
        self.ranges = True
        self.length = True
        self.status = 200
        self.cuts: list[int] = []
        """Bytes after which the connection of each of the next responses ends."""
        self.reset = False
        """Whether such an end is an error (RST) instead of a close."""
        self.stall = threading.Event()
        """Set: such a connection ends at once; cleared: it stays open without data."""
        self.stall.set()
        self.requests: list[BaseHTTPRequestHandler] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights"

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that goes away early is no error of the test
            super().handle_error(request, client_address)

    def ranges_asked(self) -> list[str | None]:
        return [request.headers.get("Range") for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(self)
        content = server.files.get(self.path.rpartition("/")[2])
        if content is None or server.status != 200:
            self.send_error(404 if content is None else server.status)
            return
        start, span = 0, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if span and server.ranges and self.headers.get("If-Range", server.etag) == server.etag:
            start = int(span[1])
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.length:
            self.send_header("Content-Length", str(len(content) - start))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        body = content[start:][:cut]
        self.wfile.write(body if server.length else b"%x\r\n%b\r\n" % (len(body), body))
        if cut is None:
            self.wfile.write(b"" if server.length else b"0\r\n\r\n")
            return
        server.stall.wait(30)
        if server.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Publish CONTENT as vit_l and SMALL as vit_b."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(module, "checkpoint_names", lambda: {"vit_l": NAME, "vit_b": SMALL_NAME})
    monkeypatch.setattr(module, "SHA256", {NAME: hashlib.sha256(CONTENT).hexdigest()})
    monkeypatch.setattr(module, "PAUSE", 0.0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.stall.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a broken connection end the download."""
    monkeypatch.setattr(module, "ATTEMPTS", 1)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def interrupt(server: Server, folder: Path, after: int = 200_000) -> None:
    """Leave a partial file, as an interruption does."""
    server.cuts = [after]
    with pytest.raises(TransferError):
        fetch(NAME, folder, server.url)
    server.requests.clear()
    assert files(folder) == [f"{NAME}.part", f"{NAME}.part.json"]
    assert (folder / f"{NAME}.part").read_bytes() == CONTENT[:after]


# --- what is published ---


def test_every_checkpoint_has_a_hash_and_digits_in_its_name():
    names = list(checkpoint_names().values())
    assert sorted(SHA256) == sorted(names)
    assert all(re.fullmatch(r"sam_vit_._[0-9a-f]{6}\.pth", name) for name in names)
    assert all(re.fullmatch(r"[0-9a-f]{64}", digits) for digits in SHA256.values())
    assert module.SOURCE == "https://dl.fbaipublicfiles.com/segment_anything"


def test_the_digits_of_a_name_are_those_of_the_md5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    hashes = hash_file(path)
    assert hashes == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "900150983cd24fb0d6963f7d28e17f72",
    )
    assert differs_from_published(hashes, "sam_vit_l_900150.pth") is None
    assert "found the MD5 9001" in differs_from_published(hashes, "sam_vit_l_ba7816.pth")
    monkeypatch.setattr(module, "SHA256", {"sam_vit_l_900150.pth": "0" * 64})
    assert "found the SHA-256 ba78" in differs_from_published(hashes, "sam_vit_l_900150.pth")


# --- whole downloads ---


def test_a_download(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "new" / "folder"
    assert main(["vit_l", "--url", server.url, "--out", str(out)]) == 0
    assert files(out) == [NAME]
    assert (out / NAME).read_bytes() == CONTENT
    request = server.requests[0]
    assert request.path == f"/weights/{NAME}"
    assert request.headers["User-Agent"].startswith("dis-sam/") and request.headers["Accept-Encoding"] == "identity"
    printed = capsys.readouterr().out
    assert f"640kB from {server.url}/{NAME}" in printed and f"{out / NAME}: verified" in printed
    assert f"MODEL={out / NAME}" in printed  # nothing looks for checkpoints there


def test_several_models_go_to_the_home_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("DIS_SAM_HOME", str(tmp_path))
    assert main(["vit_b", "vit_l", "vit_b", "--url", f"{server.url}/"]) == 0
    assert [request.path for request in server.requests] == [f"/weights/{SMALL_NAME}", f"/weights/{NAME}"]
    assert files(tmp_path / "saved_models") == [SMALL_NAME, NAME]
    assert "--checkpoint" not in capsys.readouterr().out


def test_a_server_that_does_not_give_the_size(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture):
    server.length = False
    assert fetch(NAME, tmp_path, server.url)
    assert files(tmp_path) == [NAME]
    assert "an unknown size" in capsys.readouterr().out


def test_without_sams_package_the_command_says_how_to_install_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert main(["vit_b", "--url", server.url, "--out", str(tmp_path)]) == 0
    assert "pip install 'dis-sam[sam]'" in capsys.readouterr().out


# --- resuming ---


def test_an_interrupted_download_resumes(server: Server, tmp_path: Path, once: None, capsys: pytest.CaptureFixture):
    interrupt(server, tmp_path)
    assert fetch(NAME, tmp_path, server.url)
    assert files(tmp_path) == [NAME]
    assert server.ranges_asked() == ["bytes=200000-"]
    assert server.requests[0].headers["If-Range"] == '"first"'
    assert "resumes at 200kB of 640kB" in capsys.readouterr().out


@pytest.mark.parametrize("length", [True, False], ids=["size", "no size"])
def test_a_broken_connection_is_continued(server: Server, tmp_path: Path, length: bool, capsys: pytest.CaptureFixture):
    server.length, server.cuts = length, [100_000, 50_000]
    assert fetch(NAME, tmp_path, server.url)
    assert server.ranges_asked() == [None, "bytes=100000-", "bytes=150000-"]
    assert capsys.readouterr().err.count("next attempt") == 2
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_reset_connection_is_continued(server: Server, tmp_path: Path):
    server.reset, server.cuts = True, [100_000]
    assert fetch(NAME, tmp_path, server.url)
    assert len(server.requests) == 2
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_starts_again(
    server: Server, tmp_path: Path, once: None, capsys: pytest.CaptureFixture
):
    interrupt(server, tmp_path)
    server.ranges = False
    assert fetch(NAME, tmp_path, server.url)
    assert server.ranges_asked() == ["bytes=200000-"]
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert "starts again" in capsys.readouterr().out


def test_a_file_that_changed_meanwhile_starts_again(server: Server, tmp_path: Path, once: None):
    server.files[NAME] = CONTENT[::-1]
    server.cuts = [200_000]
    with pytest.raises(TransferError):
        fetch(NAME, tmp_path, server.url)
    server.files[NAME], server.etag = CONTENT, '"second"'
    assert fetch(NAME, tmp_path, server.url)  # with the old beginning, the hash would be wrong
    assert server.ranges_asked() == [None, "bytes=200000-"]


def test_another_size_without_etag_starts_again(server: Server, tmp_path: Path, once: None):
    server.etag, server.files[NAME] = None, CONTENT + b"more"
    server.cuts = [200_000]
    with pytest.raises(TransferError):
        fetch(NAME, tmp_path, server.url)
    server.files[NAME] = CONTENT
    assert fetch(NAME, tmp_path, server.url)
    assert server.ranges_asked() == [None, "bytes=200000-", None]
    assert "If-Range" not in server.requests[1].headers


def test_a_weak_etag_is_no_validator(server: Server, tmp_path: Path, once: None):
    server.etag = 'W/"first"'
    interrupt(server, tmp_path)
    assert fetch(NAME, tmp_path, server.url)
    assert "If-Range" not in server.requests[0].headers
    assert server.ranges_asked() == ["bytes=200000-"]


def test_a_range_that_no_longer_exists_starts_again(server: Server, tmp_path: Path, once: None):
    server.length, server.etag = False, None
    server.files[NAME] = CONTENT * 2
    server.cuts = [len(CONTENT) + 5]
    with pytest.raises(TransferError):
        fetch(NAME, tmp_path, server.url)
    server.files[NAME] = CONTENT
    assert fetch(NAME, tmp_path, server.url)
    assert server.ranges_asked() == [None, f"bytes={len(CONTENT) + 5}-", None]


def test_a_complete_partial_file_is_only_verified(server: Server, tmp_path: Path, once: None):
    interrupt(server, tmp_path)
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    assert fetch(NAME, tmp_path, server.url)
    assert not server.requests
    assert files(tmp_path) == [NAME]


@pytest.mark.parametrize("change", ["record", "no record", "longer", "address"])
def test_a_partial_file_of_unknown_origin_is_not_continued(server: Server, tmp_path: Path, once: None, change: str):
    interrupt(server, tmp_path)
    record, part = tmp_path / f"{NAME}.part.json", tmp_path / f"{NAME}.part"
    if change == "record":
        record.write_text("{")
    elif change == "no record":
        record.unlink()
    elif change == "longer":
        part.write_bytes(CONTENT + b"more")
    url = server.url.replace("weights", "mirror") if change == "address" else server.url
    assert fetch(NAME, tmp_path, url)
    assert server.ranges_asked() == [None]


def test_ctrl_c_keeps_what_was_downloaded(server: Server, tmp_path: Path):
    """The command in a process of its own gets SIGINT while data arrives; the next one resumes."""
    server.stall.clear()
    server.cuts = [300_000]
    code = (
        "import sys\nfrom dis_sam import fetch\n"
        f"fetch.checkpoint_names = lambda: {{'vit_l': {NAME!r}}}\n"
        f"sys.exit(fetch.main(['vit_l', '--url', {server.url!r}, '--out', {str(tmp_path)!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    part, deadline = tmp_path / f"{NAME}.part", time.monotonic() + 30
    while not (part.is_file() and part.stat().st_size == 300_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "the same command resumes the download" in error and "Traceback" not in error
    assert files(tmp_path) == [f"{NAME}.part", f"{NAME}.part.json"]
    server.requests.clear()
    assert fetch(NAME, tmp_path, server.url)
    assert server.ranges_asked() == ["bytes=300000-"]
    assert (tmp_path / NAME).read_bytes() == CONTENT


# --- what goes wrong ---


def test_a_truncated_body(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture):
    server.ranges, server.cuts = False, [1000] * module.ATTEMPTS
    assert main(["vit_l", "--url", server.url, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "the connection ended after 1.00kB of 640kB" in error and f"{module.ATTEMPTS} times" in error
    assert "the same command resumes" in error
    assert len(server.requests) == module.ATTEMPTS
    assert NAME not in files(tmp_path)


def test_a_connection_without_data_times_out(
    server: Server, tmp_path: Path, once: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    server.stall.clear()
    server.cuts = [1000]
    with pytest.raises(TransferError, match=r"ended after 1\.00kB of 640kB \(timed out\)"):
        fetch(NAME, tmp_path, server.url)


@pytest.mark.parametrize("content", [b"<html>Please log in</html>", CONTENT[:-1] + b"x"], ids=["page", "one byte"])
def test_wrong_content_is_removed(server: Server, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture):
    server.files[NAME] = content
    assert main(["vit_l", "--url", server.url, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    for part in (f"{server.url}/{NAME}", "is not the published checkpoint", f"{len(content)} bytes", "was removed"):
        assert part in error
    assert not files(tmp_path)


def test_content_that_only_shares_the_digits_of_the_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "SHA256", {NAME: "0" * 64})
    with pytest.raises(TransferError, match=r"found the SHA-256 .* expected 000"):
        fetch(NAME, tmp_path, server.url)
    assert not files(tmp_path)


@pytest.mark.parametrize("status", [403, 404, 416, 503])
def test_the_server_refuses(server: Server, tmp_path: Path, status: int, capsys: pytest.CaptureFixture):
    server.status = status
    assert main(["vit_l", "--url", server.url, "--out", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert f"{server.url}/{NAME}: " in error and "--url" in error
    assert f"answered {status}" in error or status == 416
    assert not (tmp_path / "new").exists()


def test_no_network(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    assert main(["vit_l", "--url", url, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    for part in (f"{url}/{NAME}: no connection (", "refused", "HTTPS_PROXY", f"copy it into {tmp_path}"):
        assert part in error
    assert not files(tmp_path)


def test_a_name_that_does_not_resolve(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(FetchError, match=r"no connection \(.*Name or service not known\)"):
        fetch(NAME, tmp_path, "https://weights.invalid")


def test_no_answer_in_time(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(FetchError, match=r"no connection \(timed out\)"):
            fetch(NAME, tmp_path, url)


def test_an_answer_that_is_not_http(server: Server, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            connection.recv(4096)
            connection.sendall(b"220 mail ready\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(FetchError, match=r"no connection \(220 mail ready"):
            fetch(NAME, tmp_path, f"http://127.0.0.1:{other.getsockname()[1]}")
        thread.join()


Usage = namedtuple("Usage", "total used free")


def test_too_little_space_is_found_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage(10**6, 0, 500_000))
    assert main(["vit_l", "--url", server.url, "--out", str(tmp_path)]) == 2
    assert "found 500kB of free disk space, expected at least 640kB" in capsys.readouterr().err
    assert not files(tmp_path)


def test_space_is_needed_only_for_the_rest(server: Server, tmp_path: Path, once: None, monkeypatch: pytest.MonkeyPatch):
    interrupt(server, tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage(10**6, 0, 439_999))
    with pytest.raises(FetchError, match="found 440kB of free disk space, expected at least 440kB"):
        fetch(NAME, tmp_path, server.url)
    assert (tmp_path / f"{NAME}.part").stat().st_size == 200_000
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage(10**6, 0, 440_000))
    assert fetch(NAME, tmp_path, server.url)


def test_the_disk_becomes_full(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture):
    """A limit on the size of files stands for the full disk: both end a write early, with an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        assert main(["vit_l", "--url", server.url, "--out", str(tmp_path)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert "the disk is full (File too large) after 300kB of 640kB" in error and "resumes" in error
    assert files(tmp_path) == [f"{NAME}.part", f"{NAME}.part.json"]
    assert fetch(NAME, tmp_path, server.url)
    assert server.ranges_asked() == [None, "bytes=300000-"]


def test_a_folder_that_cannot_be_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    file = tmp_path / "file"
    file.write_bytes(b"")
    assert main(["vit_l", "--url", server.url, "--out", str(file / "folder")]) == 2
    assert f"{file / 'folder'}: cannot be written, because {file} is a file; choose another" in capsys.readouterr().err
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)  # chmod would not stop an administrator
    assert main(["vit_l", "--url", server.url, "--out", str(tmp_path / "new")]) == 2
    assert f"because {tmp_path} is not writable; choose another folder with --out DIR" in capsys.readouterr().err
    assert not server.requests


def test_an_error_of_the_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(self: Path, target: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(module.Path, "replace", fail)
    with pytest.raises(FetchError, match=r"cannot be written \(.*Read-only file system.*--out DIR"):
        fetch(NAME, tmp_path, server.url)


def test_one_model_of_two_fails(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture):
    del server.files[NAME]
    assert main(["vit_l", "vit_b", "--url", server.url, "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "answered 404" in printed.err
    assert f"{tmp_path / SMALL_NAME}: verified" in printed.out
    assert files(tmp_path) == [SMALL_NAME]


# --- files that exist ---


def test_a_verified_file_is_kept(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / NAME).write_bytes(CONTENT)
    for options in ([], ["--force"]):
        assert main(["vit_l", "--url", server.url, "--out", str(tmp_path), *options]) == 0
        assert f"{tmp_path / NAME}: already there, verified" in capsys.readouterr().out
    assert not server.requests


def test_a_file_with_other_content_is_replaced_only_with_force(
    server: Server, tmp_path: Path, once: None, capsys: pytest.CaptureFixture
):
    (tmp_path / NAME).write_bytes(b"my own weights")
    command = ["vit_l", "--url", server.url, "--out", str(tmp_path)]
    assert main(command) == 2
    assert "is not the published checkpoint" in (error := capsys.readouterr().err) and "--force" in error
    assert not server.requests
    server.cuts = [1000]
    assert main([*command, "--force"]) == 1  # replaced only by a verified file
    assert (tmp_path / NAME).read_bytes() == b"my own weights"
    assert main([*command, "--force"]) == 0
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert files(tmp_path) == [NAME]


def test_a_folder_of_that_name(server: Server, tmp_path: Path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(FetchError, match="found a folder, expected a file or nothing"):
        fetch(NAME, tmp_path, server.url, force=True)


def test_a_checkpoint_in_the_other_folder_is_found(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("DIS_SAM_HOME", str(tmp_path))
    place = tmp_path / "sam" / "notebooks"
    place.mkdir(parents=True)
    (place / NAME).write_bytes(CONTENT)
    assert main(["vit_l", "--url", server.url]) == 0
    assert f"{place / NAME}: already there" in capsys.readouterr().out
    assert not (tmp_path / "saved_models").exists()


# --- proxies ---


def test_the_proxy_of_the_environment_is_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    assert fetch(NAME, tmp_path, "http://weights.invalid/folder")  # only the proxy answers for this host
    assert server.requests[0].path == f"http://weights.invalid/folder/{NAME}"


def test_hosts_without_proxy(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="refused"):
        fetch(NAME, tmp_path, server.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert fetch(NAME, tmp_path, server.url)


def test_https_goes_through_the_proxy(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(FetchError, match=r"Tunnel connection failed: 501"):  # asked by CONNECT, which it cannot do
        fetch(NAME, tmp_path, "https://weights.invalid")


# --- arguments ---


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["vit_x"],
        ["vit_l", "--url", "weights.invalid"],
        ["vit_l", "--url", "file:///tmp"],
        ["vit_l", "--url", "http://"],
    ],
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://[x", "http://a:port/", "ftp://a/", "http://", "a"])
def test_addresses_that_are_none(url: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        main(["vit_b", "--url", url])
    assert "expected an address that starts with http:// or https://, found" in capsys.readouterr().err
