"""A heatmap over a picture.

Drawn strip by strip with Pillow's own operations: beside the picture and the result, memory is that
of a strip. Few are drawn at once, whoever asks: see `drawing`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vitcx.runtime.pictures.colormap import ENTRIES, color_table

# How much of the picture's light is left where the model did not look at it at all.
_UNSEEN_BRIGHTNESS = 0.45
# The picture's own colours are mostly taken out below the heat, so that colour means heat.
_SATURATION = 0.25
# Colour is laid on from here, in parts of `strength`, up to full strength at heat 1: so that the
# picture stays readable where there is no evidence.
_BASE_OPACITY = 0.5
_STRIP_PIXELS = 1 << 18
# Overlays in the making, in the whole process: each takes eight bytes a pixel with its picture.
MOST_DRAWN = 2
# A caption is as wide as its picture: below very wide ones it would outgrow them.
_LEAST_FONT, _MOST_FONT, _MOST_CAPTION_PIXELS = 8, 160, 4_000_000

_places = threading.BoundedSemaphore(MOST_DRAWN)
_held = threading.local()


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Wait for one of the `MOST_DRAWN` places in which large pictures are drawn and encoded.

    `overlay` takes one by itself. Who also encodes the result holds it around both; a thread that
    holds one takes no second.
    """
    if getattr(_held, "place", False):
        yield
        return
    with _places:
        _held.place = True
        try:
            yield
        finally:
            _held.place = False


def overlay(
    original: Image.Image,
    heat: NDArray[np.float32],
    box: tuple[float, float, float, float],
    strength: float,
) -> Image.Image:
    """Colours of the heat over the picture: an RGB image of the original's size.

    Parameters
    ----------
    original : RGB.
    heat : (H,W) float32 in [0, 1], in the model's frame.
    box : what the model saw, in pixels of the original; not rounded.
    strength : in [0, 1].
    """
    width, height = original.size
    left, top, right, bottom = seen_pixels(original.size, box)
    opacity = _opacity_table(strength)
    with drawing():
        result = Image.new("RGB", original.size)
        rows = max(1, _STRIP_PIXELS // width)
        for start in range(0, height, rows):
            strip = original.crop((0, start, width, min(start + rows, height)))
            # Grey first and then a part of the colour back.
            grey = Image.blend(strip.convert("L").convert("RGB"), strip, _SATURATION)
            above, below = max(top, start), min(bottom, start + strip.height)
            if (left, right) != (0, width) or (above, below) != (start, start + strip.height):
                result.paste(grey.point(_dimming_table()), (0, start))
            if above < below and left < right:
                part = (left, above, right, below)
                hot = heat_of_pixels(heat, box, part)
                seen = grey.crop((left, above - start, right, below - start))
                colours = hot.copy()
                colours.putpalette(color_table().tobytes())
                seen.paste(colours.convert("RGB"), (0, 0), hot.point(opacity))
                result.paste(seen, (left, above))
    return result


def seen_pixels(
    size: tuple[int, int], box: tuple[float, float, float, float]
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels whose centres lie in the box; may be empty."""
    width, height = size
    left, top, right, bottom = box
    return (
        min(max(math.ceil(left - 0.5), 0), width),
        min(max(math.ceil(top - 0.5), 0), height),
        max(min(math.floor(right - 0.5) + 1, width), 0),
        max(min(math.floor(bottom - 0.5) + 1, height), 0),
    )


def heat_of_pixels(
    heat: NDArray[np.float32],
    box: tuple[float, float, float, float],
    part: tuple[int, int, int, int],
) -> Image.Image:
    """A map in the model's frame, laid over a part of the picture.

    Parameters
    ----------
    heat : (H,W) float32 in [0, 1].
    box : where it lies, in pixels of the picture.
    part : (left, top, right, bottom) in whole pixels.

    Returns
    -------
    an 8-bit image of the part's size: the heat in steps of 1/255, bilinear.
    """
    left, top, right, bottom = box
    # An affine map from the picture's pixel centres to the model's pixels.
    scale_x = heat.shape[1] / (right - left)
    scale_y = heat.shape[0] / (bottom - top)
    image = Image.fromarray(np.pad(heat, 1, mode="edge"))  # so that edges are not blended with 0
    laid = image.transform(
        (part[2] - part[0], part[3] - part[1]),
        Image.Transform.AFFINE,
        (
            scale_x,
            0,
            1 + (part[0] - left) * scale_x,
            0,
            scale_y,
            1 + (part[1] - top) * scale_y,
        ),
        Image.Resampling.BILINEAR,
    )
    steps = np.asarray(laid) * np.float32(ENTRIES - 1)
    np.rint(steps, out=steps)
    return Image.fromarray(np.clip(steps, 0, ENTRIES - 1, out=steps).astype(np.uint8))


@functools.lru_cache(maxsize=1)
def _dimming_table() -> list[int]:
    return [round(value * _UNSEEN_BRIGHTNESS) for value in range(256)] * 3


def _opacity_table(strength: float) -> list[int]:
    heat = [entry / (ENTRIES - 1) for entry in range(ENTRIES)]
    return [round(255 * strength * (_BASE_OPACITY + (1 - _BASE_OPACITY) * h)) for h in heat]


def add_caption(picture: Image.Image, text: str) -> Image.Image:
    """The picture with a dark strip below it that holds one line of text.

    A picture so wide and low that the strip would be much larger than it stays as it is.
    """
    size = min(max(12, picture.width // 24), _MOST_FONT)
    if 2 * size * picture.width > max(picture.width * picture.height, _MOST_CAPTION_PIXELS):
        return picture
    font = ImageFont.load_default(size)
    while size > _LEAST_FONT and font.getlength(text) > picture.width - size:
        size -= 1
        font = ImageFont.load_default(size)
    result = Image.new("RGB", (picture.width, picture.height + 2 * size), (24, 20, 32))
    result.paste(picture, (0, 0))
    place = (size // 2, picture.height + size)
    ImageDraw.Draw(result).text(place, text, fill=(245, 240, 230), font=font, anchor="lm")
    return result
