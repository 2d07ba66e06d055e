"""Start the local page and its JSON API (``dis-sam serve``)."""

from __future__ import annotations

import argparse
import copy
import os
import socket
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dis_sam.arguments import add_model
from dis_sam.serve.guard import LOCAL_NAMES, is_local
from IS_Net.command_line import DONE, positive_int, print_text, run_command
from IS_Net.errors import UserError, import_extra
from sam.backends import available_model, split_model

if TYPE_CHECKING:
    from dis_sam.pipeline import DISSAM
    from dis_sam.serve.server import ServerSettings

TOKEN_VARIABLE = "DIS_SAM_TOKEN"
SHORTEST_TOKEN = 16


class ServeError(UserError):
    """Options with which the server does not start, or an address that it cannot use."""


_MOST = 1e9
"""Of a limit; Python cannot wait for more seconds."""


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value <= _MOST:
        raise argparse.ArgumentTypeError(f"expected a number above 0, and at most {_MOST:g}, found {text!r}")
    return value


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 (any free one) to 65535, found {text!r}")
    return int(text)


def _prefix(text: str) -> str:
    if (text and not text.startswith("/")) or any(c in text for c in "\"'<>?#% ") or "//" in text:
        raise argparse.ArgumentTypeError(f"expected a path such as /cut, found {text!r}")
    return text.rstrip("/")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dis-sam serve",
        description="Serve a page to cut objects out of photographs, and a JSON API for programs (see its "
        "page /docs). Pictures stay in memory; nothing is written to disk unless --save-to is given, and nothing is "
        "sent anywhere.",
        epilog="Only this machine can open the page, unless --host or --allow-host is given; then a token is needed.",
    )
    group = parser.add_argument_group("address")
    group.add_argument("--host", default="127.0.0.1", help="address to listen at; default: %(default)s")
    group.add_argument("--port", type=_port, default=8000, help="default: %(default)s; 0 takes a free one")
    group.add_argument(
        "--token",
        default=os.environ.get(TOKEN_VARIABLE),
        help=f"what users must enter, at least {SHORTEST_TOKEN} characters; better given in the environment variable "
        f"{TOKEN_VARIABLE}, which other users of this machine do not see",
    )
    group.add_argument(
        "--prefix", type=_prefix, default="", metavar="/PATH", help="path at which a proxy serves the page"
    )
    group.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name at which a proxy serves the page"
    )
    group.add_argument("--open", action="store_true", help="open the page in the browser")
    add_model(parser, detail=False)
    group = parser.add_argument_group("saving")
    group.add_argument(
        "--save-to", type=Path, metavar="DIR", help="let the page save training pairs: DIR/im, DIR/gt, DIR/mask"
    )
    group = parser.add_argument_group("limits")
    group.add_argument("--max-mb", type=_positive, default=60, help="of an upload; default: %(default)s")
    group.add_argument("--max-megapixels", type=_positive, default=100, help="of a picture; default: %(default)s")
    group.add_argument("--max-queue", type=positive_int, default=16, help="waiting requests; default: %(default)s")
    group.add_argument("--timeout", type=_positive, default=120, help="seconds per request; default: %(default)s")
    group.add_argument(
        "--memory-mb", type=_positive, default=2000, help="of pictures and results; default: %(default)s"
    )
    return parser


def check_access(host: str, token: str | None, allowed: Sequence[str]) -> tuple[str, ...] | None:
    """Check that a server that others can reach has a token.

    Args:
        host: The address to listen at.
        token: The token, or None.
        allowed: Other names that the Host header may contain.

    Returns:
        The names that the Host header may contain; None for all, if the token protects the server.

    Raises:
        ServeError: If others can reach it and there is no token, or the token is too short or holds other characters.
    """
    reachable = not is_local(host) or any(not is_local(name) for name in allowed)
    if reachable and token is None:
        import secrets

        raise ServeError(
            f"others can reach a server at {host if not is_local(host) else ', '.join(allowed)}, and there is no "
            f"token; set one, for example {TOKEN_VARIABLE}={secrets.token_urlsafe(24)}"
        )
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise ServeError(
            f"--token: found {len(token)} characters, expected at least {SHORTEST_TOKEN} ASCII characters, because "
            "whoever guesses it can use the server"
        )
    return None if not is_local(host) and not allowed else tuple(dict.fromkeys((*LOCAL_NAMES, host, *allowed)))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":  # there, the option lets two servers use one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:  # Python encodes names of hosts by IDNA, which refuses some
        reason = getattr(error, "strerror", None) or error
        raise ServeError(f"{host}:{port}: cannot be listened at ({reason}); choose another --port or --host") from error
    return listener


def _new_model(model: DISSAM) -> DISSAM:
    """Return a model for another picture, with the same networks: what SAM computes of a picture is kept in it."""
    from dis_sam.pipeline import DISSAM

    return DISSAM(lambda: copy.copy(model.sam), model.dis)


def _serve(settings: ServerSettings, model: DISSAM, listener: socket.socket, host: str, open_page: bool) -> int:
    import uvicorn

    from dis_sam.serve.app import create_app

    app = create_app(lambda: _new_model(model), settings, model.dis.runtime.release)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}{settings.prefix}/"
    what = "boxes" if settings.sam == "box" else f"boxes and points (SAM {settings.sam})"
    print_text(f"DIS-SAM serves {address} with {what}; API: {address}docs; Ctrl-C ends it")
    if open_page:
        webbrowser.open(address)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # addresses may contain the token
        server_header=False,
        limit_concurrency=200,
        lifespan="on",
        timeout_graceful_shutdown=3,
    )
    uvicorn.Server(config).run(sockets=[listener])
    return DONE


def _run(options: argparse.Namespace) -> int:
    hosts = check_access(options.host, options.token or None, options.allow_host)
    for module in ("fastapi", "uvicorn", "python_multipart"):
        import_extra(module, "serve")
    listener = _listen(options.host, options.port)  # before the model is loaded, which takes longer
    with listener:
        from dis_sam.pipeline import load
        from dis_sam.serve.server import ServerSettings
        from dis_sam.serve.training_pairs import require_folder

        if options.save_to is not None:
            require_folder(options.save_to)
        sam = available_model() if options.sam == "auto" else options.sam
        model = load(options.weights, sam, options.device, options.precision, options.runtime)
        settings = ServerSettings(
            sam=split_model(sam)[0],
            token=options.token or None,
            hosts=hosts,
            prefix=options.prefix,
            save_to=options.save_to,
            max_mb=options.max_mb,
            max_megapixels=options.max_megapixels,
            max_queue=options.max_queue,
            timeout=options.timeout,
            memory_mb=options.memory_mb,
        )
        return _serve(settings, model, listener, options.host, options.open)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when it was ended in an orderly way, 2 if it could not start, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    return run_command(lambda: _run(options), "stopped")


if __name__ == "__main__":
    sys.exit(main())
