"""What all routes share: the errors that they answer with, and small helpers."""

from __future__ import annotations

import asyncio
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
