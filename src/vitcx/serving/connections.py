"""Open connections: how many, how long they may be silent, and how slow.

Nothing here knows HTTP. A `Connection` is told by `Access` when a request is being worked on; the
rest follows from bytes that come and go. When there is no place left, the connection that has been
silent for the longest makes room, so that silent ones can never keep others out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from vitcx.serving.limits import Limits

# In an ASGI scope's state.
CONNECTION = "vitcx.connection"
SWEEP_SECONDS = 0.5
# What a request may have beside its payload: the head, and the frames of chunks as large as they
# are. What has been parsed and not been taken yet is counted late.
_FRAMES_BYTES = 192 << 10


class Connection:
    """One connection.

    Attributes
    ----------
    working : a request's head has come and its answer is not complete.
    receiving : of the request that is worked on, the body is not whole.
    since : on the monotonic clock, when the wait for a head began.
    received : bytes since then.
    payload : of those, bytes of bodies that were taken.
    """

    __slots__ = (
        "_marked_at",
        "_marked_left",
        "_marked_written",
        "_written",
        "payload",
        "received",
        "receiving",
        "since",
        "transport",
        "working",
    )

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.working = self.receiving = False
        self.since = time.monotonic()
        self.received = self.payload = 0
        # How much was left to be read by the client when it was last looked at; None for nothing.
        self._marked_left: int | None = None
        self._marked_at = 0.0
        self._written = self._marked_written = 0

    @property
    def unread_bytes(self) -> int:
        """Bytes of answers that the client has not taken yet."""
        return self.transport.get_write_buffer_size()

    @property
    def stalled_since(self) -> float:
        """When the client was last seen to take something of its answer."""
        return self._marked_at

    def begin_work(self, *, receiving: bool) -> None:
        """A request's head is there; `receiving` if it has a body."""
        self.working, self.receiving = True, receiving

    def took(self, size: int, *, whole: bool) -> None:
        """A piece of a body was taken; `whole` if it was the last."""
        self.payload += size
        self.receiving = not whole

    def end_work(self) -> None:
        """The answer is complete, or as complete as it will be."""
        self.working = self.receiving = False
        self.since = time.monotonic()
        self.received = self.payload = 0

    def wrote(self, size: int) -> None:
        """A piece of an answer was handed to the transport."""
        self._written += size

    def overdue(self, now: float, limits: Limits) -> str | None:
        """Why it is to be cut; None if it is not."""
        left = self.unread_bytes
        if left:
            return self._reads_too_slowly(left, now, limits)
        if self._marked_left is not None:
            self._marked_left = None
            self.since = max(self.since, now)
        if self.working:
            return None
        return "head_slow" if now - self.since > limits.head_seconds else None

    def _reads_too_slowly(self, left: int, now: float, limits: Limits) -> str | None:
        if self._marked_left is not None:
            if now - self._marked_at < limits.stall_seconds:
                return None
            taken = self._marked_left + self._written - self._marked_written - left
            if taken < limits.least_rate * limits.stall_seconds:
                return "answer_unread"
        self._marked_left, self._marked_at, self._marked_written = left, now, self._written
        return None

    def oversized(self, limits: Limits) -> str | None:
        """Why what it sends is to be refused; None if it is not."""
        if not self.working:
            return "head_large" if self.received > limits.head_bytes else None
        # Chunks of a byte cost a hundred times what they carry.
        small = self.received > 2 * self.payload + _FRAMES_BYTES
        return "chunks_small" if small else None


class Connections:
    """All open connections of a server; used on the event loop only.

    Parameters
    ----------
    limits : how many, how silent, how slow.
    on_cut : told why, whenever one is cut.
    """

    def __init__(self, limits: Limits, on_cut: Callable[[str], None]) -> None:
        self._limits, self._on_cut = limits, on_cut
        self._open: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, transport: asyncio.Transport) -> Connection:
        """Take in a new connection; another one makes room if need be."""
        if len(self._open) >= self._limits.connections:
            self._make_room()
        connection = Connection(transport)
        self._open[connection] = None
        return connection

    def received(self, connection: Connection, size: int) -> bool:
        """Note bytes that have come; False if they are too many and the connection was cut."""
        connection.received += size
        reason = connection.oversized(self._limits)
        if reason is not None:
            self._cut(connection, reason)
        return reason is None

    def closed(self, connection: Connection) -> None:
        """Forget one that is closed."""
        self._open.pop(connection, None)

    def sweep(self) -> None:
        """Cut those that are silent or slow for too long, and those that hold too much."""
        now = time.monotonic()
        for connection in list(self._open):
            reason = connection.overdue(now, self._limits)
            if reason is not None:
                self._cut(connection, reason)
        unread = {c: c.unread_bytes for c in self._open if c.unread_bytes}
        over = sum(unread.values()) - self._limits.unread_bytes
        for connection in sorted(unread, key=lambda c: c.stalled_since):
            if over <= 0:
                return
            over -= unread[connection]
            self._cut(connection, "answers_full")

    async def keep_sweeping(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep()

    def _make_room(self) -> None:
        """Cut the one that has kept us waiting for the longest: silent before slow before busy."""

        def patience(c: Connection) -> tuple[int, float]:
            if c.working:
                return (2 if c.receiving else 3), c.since
            return (1, c.stalled_since) if c.unread_bytes else (0, c.since)

        self._cut(min(self._open, key=patience), "connections_full")

    def _cut(self, connection: Connection, reason: str) -> None:
        self._open.pop(connection, None)
        self._on_cut(reason)
        connection.transport.abort()
