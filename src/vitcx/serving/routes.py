"""What all routes share: the errors that they answer with, and small helpers."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

from fastapi import Request

from vitcx.serving.answers import JSON

ERROR = {
    "description": "One sentence on what is wrong",
    "content": {JSON: {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}},
}
ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys(
    (400, 401, 403, 406, 408, 413, 415, 421, 422, 429, 503, 504), ERROR
)


def gone(http: Request) -> Any:
    """What returns when the client has gone, once the body is there."""

    async def wait() -> None:
        # The body has been read: the next message is the client's going away.
        while (await http.receive())["type"] != "http.disconnect":
            await asyncio.sleep(0.05)

    return wait


def client_of(http: Request) -> str:
    """Whom a request counts for where clients take turns: its address, of IPv6 the network (/64).

    Behind a proxy on this machine, the address that it gives in X-Forwarded-For (uvicorn's doing).
    """
    host = http.client.host if http.client else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
