"""Decoders for which a file is slow because it says so: a real one would cost real seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from vitcx.runtime.pictures import decoder_process, decoders

# A file that its decoder is at work on until it is killed.
SLOW = b"slow"
WAIT_SECONDS = 30.0
_START = """
import json, sys, time
sys.path[:] = json.loads(sys.argv[1])
from vitcx.runtime.pictures import decoder_process
decode = decoder_process.decode_file
def decode_or_sleep(file, name, max_pixels):
    if file.getvalue() == b"slow":
        time.sleep(60)
    return decode(file, name, max_pixels)
decoder_process.decode_file = decode_or_sleep
decoder_process.serve()
"""


@contextmanager
def slow_decoders(patch: pytest.MonkeyPatch, quick_seconds: float = 0.2) -> Iterator[None]:
    """Decoders that know slow files; a file is slow after `quick_seconds`."""
    patch.setattr(decoder_process, "_START", _START)
    patch.setattr(decoders, "_pools", {})
    patch.setattr(decoders, "QUICK_SECONDS", quick_seconds)
    pool = decoders._pool()
    try:
        yield
        assert comes(lambda: not pool._busy)
    finally:
        pool.close()


def busy() -> int:
    """How many files are with a decoder."""
    return sum(turn.since is not None for turn in list(decoders._pool()._busy))


def end_slow() -> None:
    """End whatever is with a decoder."""
    pool = decoders._pool()
    with pool._lock:
        for turn in pool._busy:
            if turn.since is not None and not turn.given_up:
                turn.give_up()


def comes(condition: Callable[[], bool]) -> bool:
    """Whether it does, before long."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
