"""One list of formats; all others are refused unread."""

from __future__ import annotations

import gc
import io
import os
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from vitcx.runtime.errors import InputError
from vitcx.runtime.pictures import decoding
from vitcx.runtime.pictures.formats import FORMATS, PICTURE_SUFFIXES
from vitcx.runtime.pictures.reading import EncodedPicture, read_picture

PIXELS = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: bytes, max_pixels: int = 1000) -> np.ndarray:
    return np.asarray(read_picture(EncodedPicture("x", lambda: data, max_pixels)))


@pytest.mark.parametrize("kind", [one.name for one in FORMATS])
def test_every_format_of_the_list_is_read(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    picture = np.full((16, 24, 3), 200, np.uint8)
    np.testing.assert_allclose(read(encoded(picture, kind)), picture, atol=3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow says what it thinks of them
@pytest.mark.parametrize("kind", [one.name for one in FORMATS])
def test_a_damaged_file_is_a_picture_or_a_sentence(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    rng = np.random.default_rng(0)
    whole = encoded(PIXELS, kind)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 400), rng.integers(1, 6)):
            damaged[at] = rng.integers(256)
        if rng.random() < 0.3:
            damaged = damaged[: rng.integers(1, len(damaged))]
        try:
            assert read(bytes(damaged)).dtype == np.uint8
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert refused


def test_pictures_of_phones_with_two_views_are_read_as_the_first() -> None:
    buffer = io.BytesIO()
    first = Image.new("RGB", (24, 16), (200, 200, 200))
    first.save(buffer, "mpo", save_all=True, append_images=[Image.new("RGB", (24, 16))])
    np.testing.assert_allclose(read(buffer.getvalue()), np.asarray(first), atol=3)


def test_of_an_animation_the_first_picture_is_read() -> None:
    first, second = Image.new("RGB", (24, 16), "white"), Image.new("RGB", (24, 16))
    for kind in ("gif", "webp", "png", "tiff"):
        buffer = io.BytesIO()
        first.save(buffer, kind, save_all=True, append_images=[second])
        np.testing.assert_allclose(read(buffer.getvalue()), 255, atol=3)


@pytest.mark.parametrize(
    "kind", ["ico", "dds", "tga", "pcx", "sgi", "icns", "xbm", "eps", "dib", "qoi"]
)
def test_other_formats_are_refused_by_no_reader_of_theirs(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.new("1" if kind == "xbm" else "RGB", (16, 16))
    buffer = io.BytesIO()
    picture.save(buffer, kind)

    def opened(*given: object) -> None:
        raise AssertionError("its reader was asked")

    monkeypatch.setitem(Image.OPEN, kind.upper(), (opened, Image.OPEN[kind.upper()][1]))
    with pytest.raises(InputError, match=r"one of JPEG, PNG|PostScript") as caught:
        read(buffer.getvalue())
    assert "\n" not in str(caught.value)


def test_portable_pixmaps_that_are_slow_to_read_are_refused() -> None:
    for data, words in (
        (b"P3 2 1 255 1 2 3 4 5 6", "not a binary PPM"),
        (b"P6 #" + b"x" * 10_000 + b"\n2 1 255 123456", "short header"),
        (b"P6" + b" " * 5000 + b"x", "short header"),
        (b"P6 2 1 100 123456", "values up to 100"),
        (b"P5 2 1 4095 1234", "values up to 4095"),
    ):
        with pytest.raises(InputError, match=words):
            read(data)
    np.testing.assert_array_equal(
        read(b"P6 # made by hand\n2 1\n255\n123456"), [[[*b"123"], [*b"456"]]]
    )
    np.testing.assert_array_equal(read(b"P5 2 1 65535\n\xff\xff\0\0")[0, :, 0], [255, 0])


def test_a_heic_picture_is_told_by_its_name() -> None:
    with pytest.raises(InputError, match="is HEIC"):
        read(b"\0\0\0\x18ftypheic" + bytes(40))


def test_large_pictures_are_opened_without_a_filter_of_warnings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pillow's own limit warns and the filters are all threads': callers had to take turns."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    data = encoded(PIXELS, "png")
    np.testing.assert_array_equal(read(data), PIXELS)  # warnings are errors in these tests
    with pytest.raises(InputError, match="more than 300 pixels"):
        read(data, 300)


def test_one_that_is_slow_to_open_does_not_hold_up_others(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go_on = threading.Event(), threading.Event()
    factory, accept = Image.OPEN["BMP"]

    def slow(*given: object) -> Image.Image:
        inside.set()
        go_on.wait(30)
        return factory(*given)

    from vitcx.runtime.pictures import formats

    monkeypatch.setitem(Image.OPEN, "BMP", (slow, accept))
    formats._own_openers.cache_clear()
    results: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: results.append(read(encoded(PIXELS, "bmp"))))
    thread.start()
    try:
        assert inside.wait(30)
        np.testing.assert_array_equal(read(encoded(PIXELS, "png")), PIXELS)
        assert not results
    finally:
        go_on.set()
        thread.join(30)
        formats._own_openers.cache_clear()
    np.testing.assert_array_equal(results[0], PIXELS)


def test_a_refused_picture_leaves_no_pixels_behind_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[weakref.ref] = []
    real = decoding.open_image

    def watched(file: io.BytesIO) -> Image.Image | None:
        image = real(file)
        made.append(weakref.ref(image))
        return image

    monkeypatch.setattr(decoding, "open_image", watched)
    whole = encoded(np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8), "png")
    floats = encoded(np.ones((30, 30), np.float32), "tiff")
    gc.collect()
    gc.disable()
    try:
        for data in (whole[: len(whole) * 9 // 10], floats):
            with pytest.raises(InputError) as caught:
                read(data, 100_000)
            assert made.pop()() is None  # with the error still there
            assert caught.value.__context__ is None
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match="is a pipe, not a file"):
        read_picture(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match="is a device, not a file"):
        read_picture("/dev/zero")
    with pytest.raises(InputError, match="not a file name"):
        read_picture("a\0b.png")


def tiff(values: np.ndarray, white: int | None = None, **options: object) -> bytes:
    from PIL import TiffImagePlugin

    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if white is not None:
        tags[281] = white
    return encoded(values, "tiff", tiffinfo=tags, **options)


def test_twelve_bits_in_a_larger_word_are_asked_about() -> None:
    values = np.array([[0, 1000, 4095]], np.uint16)
    for data in (tiff(values), encoded(values, "png")):
        with pytest.raises(InputError, match="reach only 4095 of 65535: dark, or of fewer bits"):
            read(data)
    np.testing.assert_array_equal(read(tiff(values, white=4095))[0, :, 0], [0, 62, 255])
    np.testing.assert_array_equal(read(tiff(values * 16))[0, :, 0], [0, 62, 255])
    np.testing.assert_array_equal(read(tiff(values * 0))[0, :, 0], 0)


def test_colours_of_twelve_bits_in_a_larger_word_are_asked_about() -> None:
    def png48(values: list[int]) -> bytes:
        import struct
        import zlib

        def chunk(kind: bytes, data: bytes) -> bytes:
            check = zlib.crc32(kind + data)
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

        head = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
        data = zlib.compress(b"\0" + struct.pack(">6H", *values))
        return (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
        )

    with pytest.raises(InputError, match="colours of 16 bits that reach only a quarter"):
        read(png48([0, 1, 2, 4095, 4000, 17]))
    assert read(png48([0, 1, 2, 65535, 4000, 17])).max() == 255


def test_whole_numbers_of_32_bits_are_asked_about_unless_white_is_said() -> None:
    values = np.array([[0, 1000, 4095]], np.int32)
    with pytest.raises(InputError, match="whole numbers of 32 bits with no defined range"):
        read(tiff(values))
    np.testing.assert_array_equal(read(tiff(values, white=4095))[0, :, 0], [0, 62, 255])
    with pytest.raises(InputError, match="floating-point values with no defined range"):
        read(tiff(values.astype(np.float32)))


def test_suffixes_name_what_is_read() -> None:
    assert {".jpg", ".jfif", ".avif", ".ppm", ".jp2", ".tif"} <= PICTURE_SUFFIXES
    assert not {".ico", ".eps", ".heic", ".xpm"} & PICTURE_SUFFIXES
