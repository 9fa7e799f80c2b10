"""Who waits for a decoder, and who gives its place up."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.slow_pictures import SLOW, WAIT_SECONDS, busy, comes, end_slow, slow_decoders
from vitcx.runtime.errors import BusyError
from vitcx.runtime.pictures import decoders
from vitcx.runtime.pictures.decoders import (
    MOST_DECODERS,
    MOST_SLOW,
    NoRoomError,
    Sharing,
    decode_apart,
)

PIXELS = 1000


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with slow_decoders(monkeypatch):
        yield


def decode(data: bytes, sharing: Sharing | None = None, seconds: float = 60.0) -> tuple[int, int]:
    return decode_apart(data, "'x'", PIXELS, seconds, sharing).size


def png(size: tuple[int, int] = (5, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "png")
    return buffer.getvalue()


def test_slow_files_of_strangers_make_room_for_who_waits_but_not_all_of_them() -> None:
    with ThreadPoolExecutor(MOST_DECODERS) as pool:
        slow = [pool.submit(decode, SLOW, Sharing(), 300.0) for _ in range(MOST_DECODERS)]
        assert comes(lambda: busy() == MOST_DECODERS)
        for _ in range(5):
            assert decode(png(), Sharing()) == (5, 4)
        left = [future for future in slow if not future.done()]
        assert MOST_SLOW <= len(left) < MOST_DECODERS
        end_slow()
        errors = [future.exception(WAIT_SECONDS) for future in slow]
    assert all(isinstance(error, BusyError) and "others wait" in str(error) for error in errors)


def test_where_nobody_waits_and_where_nothing_is_shared_a_file_has_its_time() -> None:
    with ThreadPoolExecutor(MOST_DECODERS + 1) as pool:
        slow = [pool.submit(decode, SLOW, None, 1.0) for _ in range(MOST_DECODERS)]
        assert comes(lambda: busy() == MOST_DECODERS)
        assert pool.submit(decode, png(), Sharing(), 30.0).result(WAIT_SECONDS) == (5, 4)
        for future in slow:
            assert "longer than 1 s" in str(future.exception(WAIT_SECONDS))


def test_who_has_gone_keeps_neither_a_place_in_line_nor_a_decoder() -> None:
    here = threading.Event()
    here.set()
    with ThreadPoolExecutor(2 * MOST_DECODERS) as pool:
        slow = [
            pool.submit(decode, SLOW, Sharing(wanted=here.is_set), 300.0)
            for _ in range(MOST_DECODERS + 2)
        ]
        assert comes(lambda: len(decoders._pool()._line) == 2)
        here.clear()
        assert comes(lambda: not decoders._pool()._line)
        with ThreadPoolExecutor(MOST_DECODERS) as honest:
            while decoders._pool()._busy:  # none of the places is kept, however few are slow
                assert list(honest.map(decode, [png()] * MOST_DECODERS)) == [(5, 4)] * MOST_DECODERS
        assert all(isinstance(future.exception(WAIT_SECONDS), BusyError) for future in slow)


def test_a_picture_that_there_is_no_room_for_leaves_its_decoder_to_others() -> None:
    asked: list[int] = []

    def has_room(pixels: int) -> bool:
        asked.append(pixels)
        return False

    with pytest.raises(NoRoomError):
        decode(png((9, 9)), Sharing(has_room=has_room))
    assert asked == [81]
    (idle,) = decoders._pool()._idle
    assert decode(png()) == (5, 4)
    assert decoders._pool()._idle == [idle]
