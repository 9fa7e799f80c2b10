"""Files that keep a decoder busy, or break it, end in a sentence and hold up nobody."""

from __future__ import annotations

import io
import os
import signal
import struct
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from vitcx.runtime.errors import InputError
from vitcx.runtime.pictures import decoder_process, decoders
from vitcx.runtime.pictures.decoders import decode_apart
from vitcx.runtime.pictures.reading import EncodedPicture, read_picture

BODY_BYTES = 32 << 20  # of a request to the server
PIXELS = 40_000_000
SIDE = 6300
# A fraction of what the slowest files take (half a minute and more on two cores), and many times
# what the picture beside them takes.
SECONDS = 3.0


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def png_of_many_texts() -> bytes:
    texts = chunk(b"tEXt", b"a\0b")
    pixels = zlib.compress(bytes(8 * 25))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
        + texts * ((BODY_BYTES - 1000) // len(texts))
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


def jpeg_of_many_comments() -> bytes:
    data = encoded(Image.new("RGB", (64, 64)), "jpeg")
    return data[:2] + b"\xff\xfe\0\2" * ((BODY_BYTES - len(data)) // 4) + data[2:]


def jpeg_of_many_scans() -> bytes:
    data = encoded(Image.new("L", (SIDE, SIDE)), "jpeg", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * ((BODY_BYTES - len(data)) // len(last)) + data[-2:]


def bmp_of_short_runs() -> bytes:
    body = b"\1\1" * ((BODY_BYTES - 2000) // 2) + b"\0\1"
    start = 14 + 40 + 1024
    head = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 8, 1, len(body), 0, 0, 256, 256)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + bytes(1024) + body


@pytest.fixture
def honest() -> Callable[[], None]:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), "png")

    def is_served() -> None:
        result = decode_apart(data, "'honest'", PIXELS, 60)
        np.testing.assert_array_equal(np.asarray(result), pixels)

    return is_served


@pytest.mark.parametrize(
    "make", [png_of_many_texts, jpeg_of_many_comments, jpeg_of_many_scans, bmp_of_short_runs]
)
def test_a_file_that_takes_too_long_is_ended_for_good(
    make: Callable[[], bytes], honest: Callable[[], None]
) -> None:
    data = make()
    assert len(data) <= BODY_BYTES
    with pytest.raises(InputError, match="'slow' takes longer than 3 s to decode"):
        read_picture(EncodedPicture("slow", lambda: data, PIXELS, SECONDS))
    honest()


def test_it_says_what_the_reader_in_this_process_says() -> None:
    with pytest.raises(InputError, match=r"^'x' is not a picture that can be read"):
        read_picture(EncodedPicture("x", lambda: b"no", PIXELS, 60))
    big = encoded(Image.new("L", (100, 100)), "png")
    with pytest.raises(InputError, match="more than 99 pixels"):
        read_picture(EncodedPicture("x", lambda: big, 99, 60))


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_a_decoder_that_crashes_takes_nobody_with_it(
    honest: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest()
    decoder = decoders._pool()._idle[-1]
    os.kill(decoder._process.pid, signal.SIGSTOP)  # so that the file is still waited for
    real = decoder_process._read

    def crashed(pipe: object, length: int) -> bytes:
        os.kill(decoder._process.pid, signal.SIGKILL)
        return real(pipe, length)

    monkeypatch.setattr(decoder_process, "_read", crashed)
    with pytest.raises(InputError, match="makes its decoder crash"):
        decode_apart(b"anything", "'bad'", PIXELS, 60)
    monkeypatch.undo()
    honest()


def test_who_is_stopped_while_waiting_leaves_no_picture_for_the_next(
    honest: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, or no memory for the answer: the decoder has a picture that nobody took."""
    other = encoded(Image.new("RGB", (50, 50)), "png")

    def stopped(*given: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(decoder_process, "_receive", stopped)
    with pytest.raises(KeyboardInterrupt):
        decode_apart(other, "'other'", PIXELS, 60)
    monkeypatch.undo()
    honest()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_decoders_of_its_own(honest: Callable[[], None]) -> None:
    honest()
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            honest()
            decoders._pool().close()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    honest()
