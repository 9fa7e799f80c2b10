"""Execution contexts with their streams and buffers, shared by any number of threads.

A context costs too much, in time and in the device's memory, to be made for every thread that comes
by. So a call takes one that is free; where none is, one more is made, up to a number that does not
depend on how many threads there are. Others wait.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Generic, NoReturn, TypeVar

from vitcx.kernels.closing import Closing
from vitcx.runtime.device_errors import is_out_of_memory
from vitcx.runtime.errors import EngineError

log = logging.getLogger("vitcx")

_C = TypeVar("_C", bound=Closing)

# The device runs one batch while the next one is blended and copied beside it. A third would only
# take memory: each holds a whole batch and the library's scratch memory.
MOST_CONTEXTS = 2


class ContextPool(Closing, Generic[_C]):
    """Contexts of one kind. Thread-safe; a context manager.

    Parameters
    ----------
    make : a new one. An error that says that the device's memory is out means that there is no
        room for it (see `is_out_of_memory`); any other is the caller's. Called without a lock, once
        when the pool is made.
    most : how many there are at the most. Fewer where there is no room for them, which the log says
        once.
    """

    def __init__(self, make: Callable[[], _C], most: int = MOST_CONTEXTS) -> None:
        self._make = make
        self._changed = threading.Condition()
        self._free: list[_C] = [make()]  # the first one's error is the caller's
        self._count = 1
        self._most = most
        self._closed = False

    @contextlib.contextmanager
    def take(self) -> Iterator[_C]:
        """One for this thread alone. One that an error came out of is not used again.

        Raises
        ------
        EngineError
            The pool is closed.
        """
        taken = self._take()
        try:
            yield taken
        except BaseException:
            with self._changed:
                self._count -= 1
                self._changed.notify()
            # What went wrong may go wrong here too, and the first error is the one to see.
            with contextlib.suppress(Exception):
                taken.close()
            raise
        with self._changed:
            closed = self._closed
            if not closed:
                self._free.append(taken)
                self._changed.notify()
        if closed:
            taken.close()

    def _take(self) -> _C:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._free or self._count < self._most
                )
                if self._closed:
                    _refuse()
                if self._free:
                    return self._free.pop()
                self._count += 1
            try:
                return self._make()
            except BaseException as error:
                no_room = isinstance(error, EngineError) and is_out_of_memory(error)
                with self._changed:
                    self._count -= 1
                    others = self._count
                    if others and no_room:
                        self._most = others
                    self._changed.notify_all()
                if not others or not no_room:
                    raise
                log.warning("threads share what there is of the engine: %s", error)

    def close(self) -> None:
        """Close them; those in use when they are given back. Twice does no harm."""
        with self._changed:
            self._closed = True
            free, self._free = self._free, []
            # It holds the engine, and so its weights on the device, as long as a closed session is
            # around.
            self._make = _refuse
            self._changed.notify_all()
        for context in free:
            context.close()


def _refuse() -> NoReturn:
    raise EngineError("the session is closed: load the bundle again")
