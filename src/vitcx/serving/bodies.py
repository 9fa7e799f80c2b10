"""Bodies on their way: received at a least rate, and bounded together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect, Request

from vitcx.serving.limits import Limits, Refused


@dataclass(eq=False)
class _Body:
    """One request's.

    Attributes
    ----------
    receiving : the task that receives it, while it does.
    """

    data: bytearray = field(default_factory=bytearray)
    receiving: asyncio.Task[None] | None = None
    evicted: bool = False


class Bodies:
    """Every body that the server holds; used on the event loop only.

    Parameters
    ----------
    limits : how many bytes, and how slow.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held: dict[_Body, None] = {}  # in the order of their arrival
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of all bodies, those that are still coming included."""
        return self._bytes

    @contextmanager
    def holding(self) -> Iterator[_Body]:
        """Room for one body, given free at the end."""
        body = _Body()
        self._held[body] = None
        try:
            yield body
        finally:
            self._release(body)

    async def receive(self, body: _Body, http: Request, deadline: float) -> bytearray:
        """The whole body.

        Raises
        ------
        Refused
            408 if it comes too slowly or not before the deadline, 503 if there is no room for it.
        ClientDisconnect
            If the client goes away.
        """
        task = body.receiving = asyncio.ensure_future(self._fill(body, http))
        try:
            while not task.done():
                before, start = len(body.data), time.monotonic()
                span = min(self._limits.stall_seconds, deadline - start)
                await asyncio.wait({task}, timeout=max(0.0, span))
                if task.done():
                    break
                if time.monotonic() >= deadline:
                    raise Refused(408, "the request did not arrive in time", _CLOSE)
                if len(body.data) - before < self._limits.least_rate * span:
                    raise Refused(
                        408,
                        f"the body came at less than {self._limits.least_rate} bytes a second",
                        _CLOSE,
                    )
            if body.evicted:
                raise Refused(
                    503,
                    "there is no room for the body: too many are on their way, try again",
                    {**_CLOSE, "Retry-After": "1"},
                )
            task.result()
        finally:
            body.receiving = None
            task.cancel()
        return body.data

    async def _fill(self, body: _Body, http: Request) -> None:
        while True:
            message = await http.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            piece = message.get("body", b"")
            body.data += piece
            self._bytes += len(piece)
            if self._bytes > self._limits.held_bytes:
                self._make_room()
            if body.evicted or not message.get("more_body", False):
                return

    def _make_room(self) -> None:
        """Drop the body that has been on its way for the longest."""
        for body in self._held:
            if body.receiving is not None and not body.evicted:
                body.evicted = True
                body.receiving.cancel()
                self._bytes -= len(body.data)
                body.data = bytearray()
                return

    def _release(self, body: _Body) -> None:
        del self._held[body]
        self._bytes -= len(body.data)


_CLOSE = {"Connection": "close"}
