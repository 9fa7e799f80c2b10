"""What the server takes on, and the error of a request that it does not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What the server takes on. Sizes are bytes, times seconds.

    Attributes
    ----------
    queue : requests accepted and not answered; over it, 429. One in eight is for clients that have
        none there.
    deadline : from the head of a request to its answer; over it, 504 (408 while the body comes).
        An engine that works on one batch for longer is taken for one that hangs.
    body_bytes, pixels : of one request; over it, 413 and 400.
    targets : classes explained in one request.
    passes : forward passes of one picture, at most; a request for more is refused with 400.
    answer_bytes : of one answer; a request for more is refused with 400 before any work. The
        overlay of the largest picture fits the default.
    held_bytes : of all bodies that are being received or worked on; when they are full, the body
        that has been on its way for the longest makes room.
    unread_bytes : of all answers that their clients have not read yet; when they are full, the
        connection that has been slow for the longest is cut.
    connections : open at a time; when they are full, the one that has said nothing for the longest
        is cut.
    head_seconds : from a connection's opening, or its last answer, to the end of the next head.
    head_bytes : of a request's head.
    stall_seconds : a body or an answer must move in each span of this length,
    least_rate : by at least this many bytes a second.
    """

    queue: int = 64
    deadline: float = 60.0
    body_bytes: int = 32 << 20
    pixels: int = 40_000_000
    targets: int = 100
    passes: int = 20_000
    answer_bytes: int = 128 << 20
    held_bytes: int = 256 << 20
    unread_bytes: int = 256 << 20
    connections: int = 512
    head_seconds: float = 10.0
    head_bytes: int = 32 << 10
    stall_seconds: float = 10.0
    least_rate: int = 2 << 10


class Refused(Exception):
    """A request that is answered with an error: status, one sentence, headers."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
