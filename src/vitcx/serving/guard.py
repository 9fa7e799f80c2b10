"""What every request passes first: the token and the body limit. Plain ASGI, nothing buffered."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# The page holds no secrets and asks for the token itself.
PAGE_PATHS = frozenset({"/", "/page.js", "/page.css"})
# Probes of an orchestrator carry no token; these say up or not and ready or not, and nothing else.
# A model's own readiness is not among them: it tells which names there are.
PROBE_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
OPEN_PATHS = PAGE_PATHS | PROBE_PATHS


class BodyTooLarge(Exception):
    """Raised while a body is read, when it passes the limit."""


class Guard:
    """ASGI middleware.

    Parameters
    ----------
    app : what is guarded.
    token : the bearer token, or None for none.
    body_bytes : the largest body.
    """

    def __init__(self, app: App, token: str | None, body_bytes: int) -> None:
        self._app, self._body_bytes = app, body_bytes
        self._token = token.encode() if token else None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not self._allowed(scope["path"], headers):
            challenge = [(b"www-authenticate", b"Bearer")]
            await _answer(send, 401, "this server wants its bearer token", challenge)
            return
        length = headers.get(b"content-length", b"0")
        too_large = f"the body is larger than {self._body_bytes} bytes"
        if not length.isdigit():
            await _answer(send, 400, "the Content-Length is not a number")
            return
        if len(length) > 18 or int(length) > self._body_bytes:
            await _answer(send, 413, too_large)
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
                await _answer(send, 413, too_large)

    def _allowed(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if self._token is None or path in OPEN_PATHS:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(given.strip(), self._token) and scheme.lower() == b"bearer"


async def _answer(
    send: Send, status: int, message: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = json.dumps({"error": message}).encode()
    start = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the rest of the body is not read
    ]
    await send(
        {"type": "http.response.start", "status": status, "headers": start + (headers or [])}
    )
    await send({"type": "http.response.body", "body": body})
