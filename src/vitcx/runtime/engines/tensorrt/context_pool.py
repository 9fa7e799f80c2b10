"""Stations: each has what one thread at a time needs of an engine on a GPU, and keeps it.

An execution context, a stream and buffers cost too much to be made for every thread that comes by,
and threads come and go. So a call takes a station that is free, and one more is made only when all
are taken: there are as many as there were calls at the same time.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Generic, NoReturn, TypeVar

from vitcx.kernels.closing import Closing
from vitcx.runtime.errors import EngineError

log = logging.getLogger("vitcx")

_L = TypeVar("_L", bound=Closing)


class Stations(Closing, Generic[_L]):
    """Stations of one kind. Thread-safe; a context manager.

    Parameters
    ----------
    make : a new station; `EngineError` where there is no room for one. Called without a lock.
    """

    def __init__(self, make: Callable[[], _L]) -> None:
        self._make = make
        self._changed = threading.Condition()
        self._free: list[_L] = [make()]  # the first one's error is the caller's
        self._count = 1
        self._most: int | None = None
        self._closed = False

    @contextlib.contextmanager
    def take(self) -> Iterator[_L]:
        """A station for this thread alone. One that an error came out of is not used again.

        Raises
        ------
        EngineError
            The stations are closed.
        """
        station = self._take()
        try:
            yield station
        except BaseException:
            with self._changed:
                self._count -= 1
                self._changed.notify()
            # What went wrong may go wrong here too, and the first error is the one to see.
            with contextlib.suppress(Exception):
                station.close()
            raise
        with self._changed:
            closed = self._closed
            if not closed:
                self._free.append(station)
                self._changed.notify()
        if closed:
            station.close()

    def _take(self) -> _L:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._free or self._most != self._count
                )
                if self._closed:
                    _refuse()
                if self._free:
                    return self._free.pop()
                self._count += 1
            try:
                return self._make()
            except BaseException as error:
                with self._changed:
                    self._count -= 1
                    others = self._count
                    first = self._most is None
                    if others and isinstance(error, EngineError):
                        self._most = others
                    self._changed.notify_all()
                if not others or not isinstance(error, EngineError):
                    raise
                if first:
                    log.warning("threads share what there is of the engine: %s", error)

    def close(self) -> None:
        """Close the stations; those in use when they are given back. Twice does no harm."""
        with self._changed:
            self._closed = True
            free, self._free = self._free, []
            # It holds the engine, and so its weights on the device, as long as a closed session is
            # around.
            self._make = _refuse
            self._changed.notify_all()
        for station in free:
            station.close()


def _refuse() -> NoReturn:
    raise EngineError("the session is closed: load the bundle again")
