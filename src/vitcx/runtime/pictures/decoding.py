"""From a file's bytes to 8-bit RGB: right side up, over white, deep grey scaled.

Sizes are checked before pixels are made. What is refused leaves nothing behind: the error that
comes out refers to no frame in which pixels are, so they are freed at once and not when Python's
collector next looks for rings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from vitcx.runtime.errors import InputError
from vitcx.runtime.pictures.formats import READABLE, open_image

# Pillow's own limit against decompression bombs, about 89 million pixels.
MAX_PIXELS = 89_478_485
_ORIENTATION, _BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 274, 258, 281  # TIFF tags
# Of a 16-bit picture whose brightest pixel is below a quarter of the range nobody can tell whether
# it is dark, or of 10, 12 or 14 bits in a larger word.
_LEAST_WHITE_16 = 1 << 14
_LEAST_WHITE_8 = _LEAST_WHITE_16 >> 8


class _White(NamedTuple):
    """The value of white, and whether the file says so or its number of bits alone does."""

    value: int
    said: bool


def decode_file(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """The picture in an open file.

    Parameters
    ----------
    file : it can seek; not closed here.
    name : what errors call it, in quotes where it has them.
    max_pixels : more are refused before they are decoded.

    Raises
    ------
    InputError
        If it is no picture that is read here, damaged, empty or too large.
    """
    return _told_without_frames(lambda: _decode(file, name, max_pixels))


def as_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """A copy of a PIL image as 8-bit RGB; the rest as `decode_file`."""
    return _told_without_frames(lambda: _convert(image, name, max_pixels))


def _told_without_frames(make: Callable[[], Image.Image]) -> Image.Image:
    try:
        return make()
    except InputError as error:
        told = str(error)
    except Exception as error:  # decoders raise whatever a damaged file makes them raise
        told = f"the picture cannot be read ({type(error).__name__})"
    # Here, and not in the handler: there the new error would refer to the old one, and that one,
    # by its traceback, to the frames that hold the pixels.
    raise InputError(told)


def _decode(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    try:
        image = open_image(file)
    except InputError as error:
        raise InputError(f"{name} {error}") from None
    except Exception as error:
        raise InputError(f"{name} is not a picture that can be read ({error})") from None
    if image is None:
        raise InputError(f"{name} is not a picture that can be read (one of {READABLE})")
    with image:
        return _convert(image, name, max_pixels)


def _convert(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(f"{name} has more than {max_pixels:,} pixels: make it smaller first")
    if width == 0 or height == 0:
        raise InputError(f"{name} is empty: {width} x {height} pixels")
    try:
        white = _white_of(image)
        was_deep = _has_deep_colours(image)
        image.load()
        if image.width * image.height > max_pixels:  # a header may say less than the pixels are
            raise InputError(f"{name} has more than {max_pixels:,} pixels: make it smaller first")
        turned = image.getexif().get(_ORIENTATION, 1) != 1  # without, Pillow would make a copy
        upright = ImageOps.exif_transpose(image) if turned else image
        if upright.mode.startswith("I") or upright.mode == "F":
            return _from_deep_grey(upright, white, name)
        if upright.has_transparency_data:
            rgba = upright.convert("RGBA")
            result = Image.new("RGB", rgba.size, "white")
            result.paste(rgba, (0, 0), rgba)
        else:
            result = upright.convert("RGB")
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} is damaged or truncated ({error})") from None
    if was_deep:
        brightest = max(high for _, high in result.getextrema())  # type: ignore[misc]
        if 0 < brightest < _LEAST_WHITE_8:
            raise InputError(_ask_for_white(name, "colours of 16 bits", "a quarter of them"))
    return result


def _has_deep_colours(image: Image.Image) -> bool:
    """Whether a file has colours of 16 bits, of which Pillow keeps the upper 8."""
    if image.mode.startswith(("I", "F")):
        return False
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _white_of(image: Image.Image) -> _White | None:
    """Which grey value is white; None where nothing says it."""
    tags: Any = getattr(image, "tag_v2", None)
    if tags is not None:
        said = tags.get(_MAX_SAMPLE_VALUE)
        value = said[0] if isinstance(said, tuple) and said else said
        if isinstance(value, int) and 255 < value <= 65535:
            return _White(value, said=True)
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        if 8 < bits < 16:
            return _White((1 << bits) - 1, said=True)
    # Older Pillows give grey of 16 bits as whole numbers of 32.
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM", "JPEG2000"):
        return _White(65535, said=False)
    return None


def _from_deep_grey(image: Image.Image, white: _White | None, name: str) -> Image.Image:
    """Grey of up to 16 bits to 8-bit RGB; of 32 bits or floating only where the file says white."""
    values = np.asarray(image)
    least, greatest = values.min(), values.max()
    if white is None or image.mode == "F" or least < 0 or greatest > 65535:
        kind = "floating-point values" if image.mode == "F" else "whole numbers of 32 bits"
        raise InputError(
            f"{name} has {kind} with no defined range, and nothing says which is white: save it "
            "with 8 or 16 bits"
        )
    if not white.said and 0 < greatest < _LEAST_WHITE_16:
        raise InputError(_ask_for_white(name, "grey values of 16 bits", f"{greatest} of 65535"))
    # Rounded to nearest; 255 times 65535 fits in 32 bits.
    grey = np.minimum(values, white.value).astype(np.uint32)
    grey *= 255
    grey += white.value // 2
    grey //= white.value
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _ask_for_white(name: str, kind: str, reach: str) -> str:
    return (
        f"{name} has {kind} that reach only {reach}: dark, or of fewer bits in larger words? Save "
        "it with 8 bits, or as a TIFF whose MaxSampleValue says which value is white"
    )
