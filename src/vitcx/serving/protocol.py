"""uvicorn's HTTP protocol under the limits of `connections`.

Only what asyncio promises of a protocol is overridden. Bytes come in small buffers, so that no
connection holds the event loop for long, whatever it sends.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vitcx.serving.connections import CONNECTION, Connection, Connections

_BUFFER_BYTES = 16 << 10


def make_protocol(connections: Connections) -> type[asyncio.Protocol]:
    """A protocol class for `uvicorn.Config(http=...)`.

    Parameters
    ----------
    connections : where each connection of it is kept.
    """

    class LimitedProtocol(HttpToolsProtocol, asyncio.BufferedProtocol):
        """HTTP/1.1, each connection known to `connections`."""

        def __init__(
            self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None
        ) -> None:
            self._state = dict(app_state)
            super().__init__(config, server_state, self._state, _loop)
            self._buffer = bytearray(_BUFFER_BYTES)
            self._connection: Connection | None = None

        def connection_made(self, transport: Any) -> None:
            self._connection = connections.opened(transport)
            self._state[CONNECTION] = self._connection
            super().connection_made(transport)

        def get_buffer(self, sizehint: int) -> bytearray:
            return self._buffer

        def buffer_updated(self, nbytes: int) -> None:
            assert self._connection is not None
            if connections.received(self._connection, nbytes):
                self.data_received(bytes(self._buffer[:nbytes]))

        def connection_lost(self, exc: Exception | None) -> None:
            if self._connection is not None:
                connections.closed(self._connection)
            super().connection_lost(exc)

    return LimitedProtocol
