"""Pictures of requests, decoded before they go into the pipeline.

The pipeline's threads are few: a file that keeps its decoder busy would hold one of them, and four
such files all. Here each request waits in a thread of its own, and shares the decoders with the
others (see `vitcx.runtime.pictures.decoders`).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from vitcx.runtime.errors import BusyError
from vitcx.runtime.pictures.decoders import NoRoomError, Sharing
from vitcx.runtime.pictures.reading import DecodedPicture, EncodedPicture
from vitcx.runtime.pipeline.runner import without_frames

# A photograph of a few megapixels is not held back; of larger ones few are in memory at a time.
LARGE_PIXELS = 4_000_000


@dataclass(eq=False)
class Stay:
    """One request's, from its place in the queue to its answer.

    Attributes
    ----------
    client : who asks.
    over : the request has ended: nothing more is decoded for it.
    has_room : for its large pictures; together they have no more pixels than one may have.
    """

    client: str
    over: bool = False
    has_room: bool = False


class Pictures:
    """Decodes the pictures of all requests. Thread-safe.

    Parameters
    ----------
    threads : requests that may wait at a time.
    most_large : requests with pictures of more than `LARGE_PIXELS` that are in memory at a time,
        from decoding to the answer.
    """

    def __init__(self, threads: int, most_large: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="vitcx-decode")
        self._changed = threading.Condition()
        self._line: deque[Stay] = deque()  # who waits for room, in the order of arrival
        self._most_large = most_large
        self._large = 0

    @property
    def large(self) -> int:
        """Requests that have large pictures in memory."""
        return self._large

    def close(self) -> None:
        """Begin no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def stay(self, client: str) -> Iterator[Stay]:
        """For one request; gives its room free at the end."""
        stay = Stay(client)
        try:
            yield stay
        finally:
            with self._changed:
                stay.over = True
                self._large -= stay.has_room
                self._changed.notify_all()

    def decode(self, picture: EncodedPicture, stay: Stay) -> asyncio.Future[DecodedPicture]:
        """A future of the running loop; it may be left alone when the request ends.

        It raises what `EncodedPicture.decode` does.
        """

        def decode() -> DecodedPicture:
            try:
                return self._decode(picture, stay)
            except Exception as error:
                raise without_frames(error) from None

        return asyncio.get_running_loop().run_in_executor(self._threads, decode)

    def _decode(self, picture: EncodedPicture, stay: Stay) -> DecodedPicture:
        def has_room(pixels: int) -> bool:
            return pixels <= LARGE_PIXELS or self._take_room(stay)

        sharing = Sharing(lambda: not stay.over, has_room)
        try:
            return picture.decode(sharing)
        except NoRoomError:
            # Waiting with its pixels, it would keep a decoder from small pictures.
            self._wait_for_room(stay)
        return picture.decode(sharing)

    def _take_room(self, stay: Stay) -> bool:
        with self._changed:
            if not stay.has_room and not self._line and self._large < self._most_large:
                self._grant(stay)
            return stay.has_room

    def _wait_for_room(self, stay: Stay) -> None:
        with self._changed:
            self._line.append(stay)
            try:
                self._changed.wait_for(
                    lambda: stay.over or (self._line[0] is stay and self._large < self._most_large)
                )
                if stay.over:
                    raise BusyError("the picture is not wanted any more")
                self._grant(stay)
            finally:
                self._line.remove(stay)
                self._changed.notify_all()

    def _grant(self, stay: Stay) -> None:
        if not stay.over:
            self._large += 1
            stay.has_room = True
