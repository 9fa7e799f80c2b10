"""What every request passes first: host, origin, token, body limit. ASGI, nothing buffered."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from vitcx.serving.asgi import App, Headers, Message, Receive, Scope, Send, answer_error

# The page holds no secrets and asks for the token itself.
PAGE_PATHS = frozenset({"/", "/page.css", "/page.js", "/answers.js", "/drawing.js", "/server.js"})
# Probes of an orchestrator carry no token and come to an address; these say up or not and ready or
# not, and nothing else. A model's own readiness is not among them: it tells which names there are.
PROBE_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
OPEN_PATHS = PAGE_PATHS | PROBE_PATHS
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
# Of these, a proxy may believe the first and this server the last.
_SINGLE_HEADERS = frozenset(
    b"host authorization origin content-length content-type content-encoding transfer-encoding "
    b"inference-header-content-length".split()
)
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class BodyTooLarge(Exception):
    """Raised while a body is read, when it passes the limit."""


class Guard:
    """ASGI middleware.

    Parameters
    ----------
    app : what is guarded.
    token : the bearer token, or None for none.
    body_bytes : the largest body.
    hosts : the names that a Host header may have, without a port; ``*`` is any. A page elsewhere
        that points its own name at this machine is so kept out.
    """

    def __init__(self, app: App, token: str | None, body_bytes: int, hosts: Iterable[str]) -> None:
        self._app, self._body_bytes = app, body_bytes
        self._token = token.encode() if token else None
        self._hosts = frozenset(host.lower().strip("[]") for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if refusal := self._refusal(scope, headers):
            status, sentence = refusal
            more = [(b"www-authenticate", b"Bearer")] if status == 401 else []
            await answer_error(send, status, sentence, more)
            return
        read, started = 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self._body_bytes:
                    raise BodyTooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except BodyTooLarge:
            if not started:
                await answer_error(send, 413, self._too_large())

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        if repeated := _repeated(scope["headers"]):
            return 400, f"the request has the header {repeated} more than once"
        path = scope["path"]
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if path not in PROBE_PATHS and not self._knows(host):
            return 421, (
                "this server does not answer to the name in the request's Host header: its "
                "operator can allow it with --allowed-host"
            )
        if scope["method"] not in _SAFE_METHODS and not _same_origin(host, headers):
            return 403, "a page of another origin may not send to this server"
        if not self._has_token(path, headers):
            return 401, "this server wants its bearer token"
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            return 415, "the body has a Content-Encoding: send it as it is"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return 400, "the Content-Length is not a number"
        if len(length) > 18 or int(length) > self._body_bytes:
            return 413, self._too_large()
        return None

    def _too_large(self) -> str:
        return f"the body is larger than {self._body_bytes} bytes"

    def _knows(self, host: str) -> bool:
        return "*" in self._hosts or _without_port(host) in self._hosts

    def _has_token(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if self._token is None or path in OPEN_PATHS:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(given.strip(), self._token) and scheme.lower() == b"bearer"


def _repeated(headers: Headers) -> str | None:
    """The first header that stands twice and should not."""
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in seen:
            return name.decode()
        if name in _SINGLE_HEADERS:
            seen.add(name)
    return None


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _same_origin(host: str, headers: dict[bytes, bytes]) -> bool:
    """Whether no browser says that another origin's page sends this."""
    origin = headers.get(b"origin")
    if origin is not None:
        _, _, sender = origin.decode("latin-1").lower().partition("://")
        return sender == host or f"{sender}:80" == host or f"{sender}:443" == host
    return headers.get(b"sec-fetch-site", b"none") in (b"none", b"same-origin")
