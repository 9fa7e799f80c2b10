"""The application on uvicorn, under limits of connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from vitcx.serving.admission import Admission
from vitcx.serving.connections import Connections
from vitcx.serving.limits import Limits
from vitcx.serving.protocol import make_protocol

# Descriptors for what is not a connection: models, libraries, the log.
_OTHER_DESCRIPTORS = 128
_KEEP_ALIVE_SECONDS = 5
# Connections that wait to be accepted. asyncio accepts them all before it looks at the first, so
# that many descriptors are needed beside those of the connections that make room.
_BACKLOG = 128


class Server(uvicorn.Server):
    """A server that says where it listens, once it does, and sweeps its connections.

    Parameters
    ----------
    app : of `vitcx.serving.app.make_app`.
    announce : told the URL.
    """

    def __init__(self, app: FastAPI, announce: Callable[[str], Any]) -> None:
        admission: Admission = app.state.admission
        limits = fitted(admission.limits)
        self.open_connections = Connections(limits, admission.figures.note_cut)
        admission.figures.watch(
            "vitcx_connections", "Open connections.", lambda: len(self.open_connections)
        )
        self._announce = announce
        super().__init__(
            uvicorn.Config(
                app,
                http=make_protocol(self.open_connections),
                ws="none",
                # Its transports are what `connections` was tried on.
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(limits.deadline) + 1,
                backlog=_BACKLOG,
            )
        )

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets=sockets)
        self._sweeping = asyncio.ensure_future(self.open_connections.keep_sweeping())
        for server in self.servers:
            host, port = server.sockets[0].getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            self._announce(f"http://{host}:{port}/")

    async def shutdown(self, sockets: Any = None) -> None:
        await super().shutdown(sockets=sockets)
        self._sweeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sweeping


def fitted(limits: Limits) -> Limits:
    """The limits, with no more connections than the process may have descriptors."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return limits
    from dataclasses import replace

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most == resource.RLIM_INFINITY:
        return limits
    room = max(16, most - _OTHER_DESCRIPTORS - 2 * _BACKLOG)
    return replace(limits, connections=min(limits.connections, room))
