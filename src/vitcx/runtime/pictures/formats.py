"""The formats that photographs come in: what is read, everywhere, and nothing else.

Pillow reads some forty formats. Many of its readers are loops in Python, one runs a program, and
each is a door that a server would leave open. These here are decoded by C libraries.
"""

from __future__ import annotations

import functools
import importlib
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image

from vitcx.runtime.errors import InputError


@dataclass(frozen=True)
class Format:
    """A format of pictures.

    Attributes
    ----------
    name : as Pillow calls it.
    suffixes : of its files, in lower case.
    plugin : the module that registers it, of Pillow or (HEIF) of who has installed it.
    """

    name: str
    suffixes: tuple[str, ...]
    plugin: str


FORMATS = (
    Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "PIL.JpegImagePlugin"),
    Format("PNG", (".png", ".apng"), "PIL.PngImagePlugin"),
    Format("WEBP", (".webp",), "PIL.WebPImagePlugin"),
    Format("GIF", (".gif",), "PIL.GifImagePlugin"),
    Format("BMP", (".bmp",), "PIL.BmpImagePlugin"),
    Format("TIFF", (".tif", ".tiff"), "PIL.TiffImagePlugin"),
    Format("AVIF", (".avif",), "PIL.AvifImagePlugin"),
    Format("JPEG2000", (".jp2", ".j2k", ".jpx", ".j2c", ".jpc"), "PIL.Jpeg2KImagePlugin"),
    Format("PPM", (".ppm", ".pgm", ".pnm"), "PIL.PpmImagePlugin"),
)
# Read where the program that uses vitcx has called `pillow_heif.register_heif_opener`.
HEIF = Format("HEIF", (".heic", ".heif", ".hif"), "")
PICTURE_SUFFIXES = frozenset(suffix for one in FORMATS for suffix in one.suffixes)
READABLE = ", ".join(one.name for one in FORMATS)

# A header, its comments and nothing slower: Pillow reads text byte by byte.
_GAP = rb"(?:\s|#[^\n]*\n)+"
_PPM_HEADER = re.compile(rb"P([56])" + 3 * (_GAP + rb"(\d{1,10})") + rb"\s")
_PPM_HEADER_BYTES = 4096
_PREFIX_BYTES = 32

_Opener = tuple[Callable[[BinaryIO, str], Any], Callable[[bytes], bool | str] | None]


def open_image(file: BinaryIO) -> Image.Image | None:
    """The picture in `file`, its pixels not decoded yet; None if no format here fits.

    `Image.open` would do the same, but warns of large pictures by a filter of warnings that all
    threads share: callers had to take turns. The limit is the caller's, for every size.

    Raises
    ------
    InputError
        If the format is known and not read here.
    Exception
        Whatever Pillow's readers raise for a damaged file.
    """
    file.seek(0)
    prefix = file.read(_PREFIX_BYTES)
    for factory, accept in _openers():
        if accept is not None and accept(prefix) is not True:
            continue
        if prefix[:1] == b"P":
            _check_ppm(file)
        file.seek(0)
        try:
            image: Image.Image = factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # "no picture of mine", in Pillow's words
        return image
    _refuse_known(prefix)
    return None


@functools.lru_cache(maxsize=1)
def _own_openers() -> tuple[_Opener, ...]:
    found = []
    for one in FORMATS:
        try:
            importlib.import_module(one.plugin)
        except ImportError:  # an older Pillow has no AVIF
            continue
        if one.name in Image.OPEN:
            found.append(Image.OPEN[one.name])
    return tuple(found)


def _openers() -> tuple[_Opener, ...]:
    heif = Image.OPEN.get(HEIF.name)
    return (*_own_openers(), heif) if heif else _own_openers()


def _check_ppm(file: BinaryIO) -> None:
    """Only what Pillow decodes in C: binary, of 8 bits, or grey of 16."""
    file.seek(0)
    header = _PPM_HEADER.match(file.read(_PPM_HEADER_BYTES))
    if header is None:
        raise InputError("is not a binary PPM or PGM picture (P5, P6) with a short header")
    if int(header[4][:6]) not in ((255, 65535) if header[1] == b"5" else (255,)):
        raise InputError(
            f"has values up to {header[4][:6].decode()}, and 255 is read (in grey also 65535): "
            "save it as PNG"
        )


def _refuse_known(prefix: bytes) -> None:
    if prefix.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
        raise InputError("is PostScript, a program and not a picture: save it as PNG or JPEG")
    if prefix[4:8] == b"ftyp" and prefix[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        raise InputError("is HEIC, which Pillow does not read by itself: save it as JPEG")
