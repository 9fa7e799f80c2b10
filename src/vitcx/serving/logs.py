"""The server's log: lines of text or of JSON, few enough, written by a thread of their own.

A reader of the log that has stopped reading, and clients that make many lines, hold up nothing: the
lines that are too many are left out, and counted.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

LINES_PER_SECOND, LINES_AT_ONCE = 50, 500
_WAITING_LINES = 2000


class RateLimit(logging.Filter):
    """Lets through `rate` lines a second, `burst` at once, of each kind: requests, and the rest.

    What was left out is told with the next line that is let through.
    """

    def __init__(self, rate: float = LINES_PER_SECOND, burst: float = LINES_AT_ONCE) -> None:
        super().__init__()
        self._rate, self._burst = rate, burst
        self._lock = threading.Lock()
        self._allowed: dict[bool, float] = {}
        self._at: dict[bool, float] = {}
        self._left_out: dict[bool, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = hasattr(record, "access"), time.monotonic()
        with self._lock:
            waited = now - self._at.get(kind, now)
            allowed = min(self._burst, self._allowed.get(kind, self._burst) + waited * self._rate)
            self._at[kind] = now
            if allowed < 1:
                self._allowed[kind] = allowed
                self._left_out[kind] = self._left_out.get(kind, 0) + 1
                return False
            self._allowed[kind] = allowed - 1
            if left_out := self._left_out.pop(kind, 0):
                record.left_out = left_out
        return True


class TextLines(logging.Formatter):
    """A record as a line of text, and its traceback."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        access = getattr(record, "access", None)
        if access:
            line += f" [{access['request_id']} from {access['client']}]"
        left_out = getattr(record, "left_out", 0)
        return f"{line} ({left_out} lines before it were left out)" if left_out else line


class JsonLines(logging.Formatter):
    """A record as one line of JSON, its traceback in it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "access", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        if left_out := getattr(record, "left_out", 0):
            line["left_out"] = left_out
        return json.dumps(line)


class _Handing(logging.handlers.QueueHandler):
    """Hands records to the thread that writes them, as they are; drops them when it lags."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return


class _Writer(logging.StreamHandler[IO[str]]):
    """Used by one thread, and by nobody else: it may be in the middle of a write for ever.

    At the end of the process `logging` takes every handler's lock and flushes it. Lines are written
    whole, so there is nothing to flush.
    """

    def createLock(self) -> None:
        self.lock = None

    def flush(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            super().flush()


def _own_stderr() -> IO[str]:
    """Standard error under a lock of its own: that of `sys.stderr` is taken when Python ends."""
    try:
        handle = os.dup(sys.stderr.fileno())
    except (OSError, AttributeError):  # it is no file
        return sys.stderr
    return os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace")


@contextmanager
def server_log(kind: str, stream: IO[str] | None = None) -> Iterator[None]:
    """Send everything that is logged to one place, and requests too, until the end.

    Parameters
    ----------
    kind : ``text`` or ``json``.
    stream : where to; None is standard error.
    """
    waiting: queue.Queue[Any] = queue.Queue(_WAITING_LINES)
    writer = _Writer(stream or _own_stderr())
    writer.setFormatter(JsonLines() if kind == "json" else TextLines())
    handing = _Handing(waiting)
    handing.addFilter(RateLimit())
    listener = _Listener(waiting, writer)
    root, access = logging.getLogger(), logging.getLogger("vitcx.access")
    before, level = root.handlers[:], access.level
    root.handlers[:] = [handing]
    access.setLevel(logging.INFO)
    listener.start()
    try:
        yield
    finally:
        root.handlers[:] = before
        access.setLevel(level)
        listener.stop()


class _Listener(logging.handlers.QueueListener):
    """Stops even where what it writes to does not take any more."""

    def __init__(self, waiting: queue.Queue[Any], writer: logging.Handler) -> None:
        super().__init__(waiting, writer)
        self._waiting = waiting

    def stop(self) -> None:
        thread = self._thread
        try:
            self._waiting.put(None, timeout=1)
        except queue.Full:
            return
        if thread is not None:
            thread.join(1)
