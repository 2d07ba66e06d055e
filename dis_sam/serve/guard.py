"""What stands before every request: the name of the host, the origin of the page, the token, the size of the body.

And after it: headers that let the page load nothing from elsewhere, and nobody else show it.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_PUBLIC = ("/", "/docs", "/openapi.json")


def is_local(host: str) -> bool:
    """Return whether an address or name belongs to this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_name(header: str) -> str:
    """Return the name in a Host header, without its port, in lower case; empty if it cannot be read."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


class RefusedError(Exception):
    """A request that is not served, with the status code of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """ASGI middleware that refuses requests from elsewhere, without the token, or with a body that is too large.

    A page of another site cannot use the server: browsers say where a request comes from (Sec-Fetch-Site, Origin), and
    a name that an attacker's DNS points at this machine is not in ``hosts``. The files of the page itself are public.

    Args:
        app: The application.
        too_large: Makes the exception that ends reading a body whose size its header did not tell.
        token: What requests must bring, as ``Authorization: Bearer TOKEN``; None if the server is only local.
        hosts: The names that the Host header may contain; None allows all.
        max_bytes: Of a request's body.
        max_bodies: How many requests with a body may be in work at once; each is in memory.
        prefix: The path under which the page is reached, such as ``/cut``; empty if it is the root.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        too_large: Callable[[str], Exception],
        token: str | None,
        hosts: Collection[str] | None,
        max_bytes: int,
        max_bodies: int,
        prefix: str = "",
    ) -> None:
        self.app, self.too_large, self.max_bytes, self.prefix = app, too_large, max_bytes, prefix
        self.max_bodies, self._bodies = max_bodies, 0
        self.token = None if token is None else token.encode()
        self.hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None  # there are no WebSockets; the server closes the connection
        path = scope["path"]
        if self.prefix and path.startswith(f"{self.prefix}/"):  # some proxies remove the prefix, others do not
            path = path.removeprefix(self.prefix)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_encode(_extra_headers(path))]}
            await send(message)

        try:
            self._check(path, scope["method"], scope.get("scheme", "http"), headers)
        except RefusedError as refused:
            return await _answer(send_with_headers, refused)
        if self.prefix and path == self.prefix:  # relative addresses in the page need the slash
            redirect = [(b"location", f"{self.prefix}/".encode()), (b"content-length", b"0")]
            await send_with_headers({"type": "http.response.start", "status": 307, "headers": redirect})
            return await send_with_headers({"type": "http.response.body", "body": b""})
        # the path contains the prefix, as ASGI has it, whether or not a proxy has removed it
        scope = {**scope, "path": self.prefix + path, "root_path": self.prefix}
        if scope["method"] in ("GET", "HEAD"):
            return await self.app(scope, self._count(receive), send_with_headers)
        if self._bodies >= self.max_bodies:
            busy = RefusedError(503, f"the server is busy with {self._bodies} requests; try again in some seconds")
            return await _answer(send_with_headers, busy)
        self._bodies += 1
        try:
            return await self.app(scope, self._count(receive), send_with_headers)
        finally:
            self._bodies -= 1

    def _check(self, path: str, method: str, scheme: str, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if self.hosts is not None and host_name(host) not in self.hosts:
            raise RefusedError(
                403,
                f"the request names the host {host!r}, expected one of {', '.join(sorted(self.hosts))}; open one of "
                "these addresses, or start the server with --allow-host NAME",
            )
        if path in (*_PUBLIC, self.prefix) or path.startswith("/static/"):
            return
        site = headers.get("sec-fetch-site")
        if site is not None:
            same = site in ("same-origin", "none")
        else:  # browsers leave it out on plain HTTP, other programs always; these send no origin either
            origin = headers.get("origin")
            same = origin is None or method in ("GET", "HEAD") or origin.lower() == f"{scheme}://{host}".lower()
        if not same:
            raise RefusedError(
                403, "the request comes from a page of another site; only this server's page may send it"
            )
        if self.token is not None:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token):
                raise RefusedError(
                    401, "the token is missing or wrong; send it as the header Authorization: Bearer TOKEN"
                )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.max_bytes:
            raise RefusedError(413, self._limit_text(f"{length} bytes" if length.isdecimal() else repr(length)))

    def _limit_text(self, found: str) -> str:
        return (
            f"the upload has {found}, expected at most {self.max_bytes / 1e6:g} MB; scale the picture down, or start "
            "the server with a larger --max-mb"
        )

    def _count(self, receive: Receive) -> Receive:
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.max_bytes:
                raise self.too_large(self._limit_text(f"more than {self.max_bytes} bytes"))
            return message

        return counted


def _extra_headers(path: str) -> dict[str, str]:
    static = path == "/" or path == "/docs" or path.startswith("/static/")
    return {**_HEADERS, "cache-control": "no-cache" if static else "no-store"}


def _encode(headers: dict[str, str]) -> Iterable[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


async def _answer(send: Send, refused: RefusedError) -> None:
    body = json.dumps({"detail": str(refused)}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refused.status == 503:
        headers["retry-after"] = "5"
    await send({"type": "http.response.start", "status": refused.status, "headers": list(_encode(headers))})
    await send({"type": "http.response.body", "body": body})
