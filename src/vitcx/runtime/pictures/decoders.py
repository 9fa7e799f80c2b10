"""The decoders of this process: few, kept, and shared so that slow files hold up no quick ones.

There are `MOST_DECODERS` places. Who does not mind waits for one. A server's strangers share them:
where somebody waits, the files that have taken longer than `QUICK_SECONDS` may hold `MOST_SLOW` of
the places, and the one that has taken longest gives its place up.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from PIL import Image

from vitcx.runtime.errors import BusyError, InputError
from vitcx.runtime.pictures.decoder_process import Decoder

# What a server gives a stranger's file: many times what a large photograph takes.
DECODE_SECONDS = 10.0
# What a file of one's own gets: the largest picture that is read, in the slowest format, on a busy
# machine.
OWN_DECODE_SECONDS = 60.0
# Processes at once: decoding should not take the cores that explain.
MOST_DECODERS = 4
QUICK_SECONDS, MOST_SLOW = 1.0, 2
# How often the first in line looks at who has a place, and each of the others whether it is wanted.
_LOOK_SECONDS, _LINE_SECONDS = 0.05, 0.5


@dataclass(frozen=True)
class Sharing:
    """What a caller says who shares the decoders with strangers.

    Attributes
    ----------
    wanted : whether the picture still is.
    has_room : takes room for a picture of so many pixels, before they come; False if there is none.
    """

    wanted: Callable[[], bool] = lambda: True
    has_room: Callable[[int], bool] = lambda pixels: True


def decode_apart(
    data: bytes, name: str, max_pixels: int, seconds: float, sharing: Sharing | None = None
) -> Image.Image:
    """`decode_file` in another process, for at most `seconds`, when there is a place.

    Parameters
    ----------
    sharing : None keeps the place to the end.

    Raises
    ------
    InputError
        What `decode_file` raises; and if it takes longer, or the decoder crashes.
    NoRoomError
        If `sharing` has no room for it.
    BusyError
        If it made room for others, or is not wanted any more; only with `sharing`.
    EngineError
        If no process can be started.
    """
    with _pool().turn(sharing) as turn:
        try:
            found = turn.decoder.decode(data, name, max_pixels, seconds, turn.admits)
        except InputError:
            if turn.given_up:  # it did not crash: see `_Turn.give_up`
                raise BusyError("the picture takes long to decode, and others wait") from None
            raise
    if found is None:
        raise NoRoomError
    return found


class NoRoomError(Exception):
    """A picture that is in order, and larger than what there is room for now."""


@dataclass(eq=False)
class _Turn:
    """A place, and the decoder in it.

    Attributes
    ----------
    since : on the monotonic clock, when the file went to the decoder; None before.
    given_up : it has to make room.
    told : told when it is the first in line, or a place is free.
    """

    sharing: Sharing | None
    told: threading.Condition
    decoder: Decoder = field(init=False)
    since: float | None = None
    given_up: bool = False

    @property
    def wanted(self) -> bool:
        return self.sharing is None or self.sharing.wanted()

    def is_slow(self, now: float) -> bool:
        slow = self.since is not None and now - self.since > QUICK_SECONDS
        return slow and self.sharing is not None

    def give_up(self) -> None:
        """End what is being decoded; called with the pool's lock."""
        self.given_up = True
        self.decoder.kill()

    def admits(self, pixels: int) -> bool:
        return self.sharing is None or self.sharing.has_room(pixels)


class _Pool:
    """The decoders of a process, started when they are needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line: deque[_Turn] = deque()  # who waits, in the order of arrival
        self._busy: dict[_Turn, None] = {}  # who has a place, in the order of taking it
        self._idle: list[Decoder] = []

    @contextlib.contextmanager
    def turn(self, sharing: Sharing | None) -> Iterator[_Turn]:
        """A place with a decoder that nobody else talks to meanwhile."""
        turn = _Turn(sharing, threading.Condition(self._lock))
        self._wait_for_place(turn)
        try:
            turn.decoder = self._take() or Decoder()
            turn.since = time.monotonic()
            yield turn
        except InputError:  # said by the book: it is ready for the next file, or closed
            raise
        except BaseException:
            # Stopped between question and answer: the next would get this one's picture.
            if turn.since is not None:
                turn.decoder.close()
            raise
        finally:
            with self._lock:
                del self._busy[turn]
                if turn.since is not None:
                    if turn.given_up or not turn.decoder.usable:
                        turn.decoder.close()
                    else:
                        self._idle.append(turn.decoder)
                self._tell_first()

    def _wait_for_place(self, turn: _Turn) -> None:
        with self._lock:
            self._line.append(turn)
            try:
                while turn.wanted and (not (first := self._line[0] is turn) or self._full):
                    if first:
                        self._ask_for_room()
                    turn.told.wait(_LOOK_SECONDS if first else _LINE_SECONDS)
                if not turn.wanted:
                    raise BusyError("the picture is not wanted any more")
                self._busy[turn] = None
            finally:
                self._line.remove(turn)
                self._tell_first()

    @property
    def _full(self) -> bool:
        return len(self._busy) >= MOST_DECODERS

    def _tell_first(self) -> None:
        if self._line:
            self._line[0].told.notify()

    def _ask_for_room(self) -> None:
        """Somebody waits: end the file that nobody wants, or one slow file too many."""
        if any(turn.given_up for turn in self._busy):
            return  # its place is about to be free
        now = time.monotonic()
        slow = [turn for turn in self._busy if turn.is_slow(now)]
        unwanted = [turn for turn in slow if not turn.wanted]
        if unwanted or len(slow) > MOST_SLOW:
            (unwanted or slow)[0].give_up()

    def _take(self) -> Decoder | None:
        while True:
            try:
                found = self._idle.pop()
            except IndexError:
                return None
            if found.usable:
                return found
            found.close()

    def close(self) -> None:
        """End those that are idle."""
        while self._idle:
            self._idle.pop().close()


_pools: dict[int, _Pool] = {}
_pools_lock = threading.Lock()


def _pool() -> _Pool:
    """This process's pool: a forked child must not talk into its parent's pipes."""
    found = _pools.get(os.getpid())
    if found is None:
        with _pools_lock:
            found = _pools.setdefault(os.getpid(), _Pool())
            atexit.register(found.close)
    return found
