"""Around every request: its identity, its line in the log, and an answer whatever happens.

Outermost of all. An answer that is given before the body is there takes in what little may be left
of it, so that the client reads the answer and the connection stays usable; else it says that it
closes.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from dataclasses import dataclass, field

from vitcx.serving.asgi import App, Message, Receive, Scope, Send, answer_error
from vitcx.serving.connections import CONNECTION, Connection
from vitcx.serving.figures import Figures

log = logging.getLogger("vitcx")
access_log = logging.getLogger("vitcx.access")

_IDENTITY = re.compile(rb"[A-Za-z0-9._:/+=-]{1,64}")
# Of a body that nobody wants: more, or slower, and the connection closes instead.
_LEFTOVER_BYTES, _LEFTOVER_SECONDS = 1 << 20, 2.0


@dataclass(eq=False)
class _Exchange:
    """One request and its answer, as they pass.

    Attributes
    ----------
    whole : the body is there, or the client has gone.
    started : the answer has begun.
    """

    identity: str
    connection: Connection | None
    start: float = field(default_factory=time.monotonic)
    whole: bool = False
    bytes_in: int = 0
    status: int = 0
    bytes_out: int = 0

    @property
    def started(self) -> bool:
        return self.status != 0

    def took(self, message: Message) -> None:
        """A message of the request has come."""
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.bytes_in += size
            self.whole = self.whole or not message.get("more_body", False)
            if self.connection is not None:
                self.connection.took(size, whole=self.whole)
        else:
            self.whole = True


class Access:
    """ASGI middleware.

    Parameters
    ----------
    app : what answers.
    figures : where requests are counted.
    """

    def __init__(self, app: App, figures: Figures) -> None:
        self._app, self._figures = app, figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        exchange = _Exchange(_identity(headers), scope.get("state", {}).get(CONNECTION))
        scope["state"] = {**scope.get("state", {}), "request_id": exchange.identity}
        if (
            b"content-length" not in headers and b"transfer-encoding" not in headers
        ) or headers.get(b"content-length") == b"0":
            exchange.whole = True
        waits = headers.get(b"expect", b"").lower() == b"100-continue"

        async def take() -> Message:
            message = await receive()
            exchange.took(message)
            return message

        async def give(message: Message) -> None:
            if message["type"] == "http.response.start":
                if not exchange.whole and not (waits and exchange.bytes_in == 0):
                    await _take_leftover(exchange, take)
                message = _with_headers(message, exchange)
                exchange.status = message["status"]
            else:
                exchange.bytes_out += len(message.get("body", b""))
            await send(message)
            if exchange.connection is not None:
                exchange.connection.wrote(len(message.get("body", b"")))

        if exchange.connection is not None:
            exchange.connection.begin_work(receiving=not exchange.whole)
        try:
            await self._app(scope, take, give)
        except Exception as error:
            log.error("request %s failed", exchange.identity, exc_info=error)
            if exchange.started:
                raise  # the answer is cut short; the server closes the connection
            sentence = "an error of the server's own: its log says more"
            await answer_error(give, 500, sentence, [(b"connection", b"close")])
        finally:
            if exchange.connection is not None:
                exchange.connection.end_work()
            self._note(scope, exchange)

    def _note(self, scope: Scope, exchange: _Exchange) -> None:
        seconds = time.monotonic() - exchange.start
        path = scope["path"][:200].encode("unicode_escape").decode()
        self._figures.note_request(exchange.status, seconds)
        client = scope.get("client")
        access_log.info(
            "%s %s -> %d in %.3f s",
            scope["method"],
            path,
            exchange.status,
            seconds,
            extra={
                "access": {
                    "request_id": exchange.identity,
                    "client": client[0] if client else None,
                    "method": scope["method"],
                    "path": path,
                    "status": exchange.status,
                    "bytes_in": exchange.bytes_in,
                    "bytes_out": exchange.bytes_out,
                    "seconds": round(seconds, 4),
                }
            },
        )


def _identity(headers: dict[bytes, bytes]) -> str:
    """The client's own name for the request, or a new one."""
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _IDENTITY.fullmatch(given) else secrets.token_hex(8)


def _with_headers(message: Message, exchange: _Exchange) -> Message:
    headers = [*message.get("headers", []), (b"x-request-id", exchange.identity.encode())]
    if not exchange.whole and not any(name.lower() == b"connection" for name, _ in headers):
        headers.append((b"connection", b"close"))
    return {**message, "headers": headers}


async def _take_leftover(exchange: _Exchange, take: Receive) -> None:
    """Take in a body that nobody has read, if it is short and does come."""
    most = exchange.bytes_in + _LEFTOVER_BYTES

    async def drain() -> None:
        while not exchange.whole and exchange.bytes_in < most:
            await take()

    try:
        await asyncio.wait_for(drain(), _LEFTOVER_SECONDS)
    except asyncio.TimeoutError:
        return
