"""A heatmap over a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vitcx.runtime.pictures.colormap import colorize

# How much of the picture's light is left where the model did not look at it at all.
_UNSEEN_BRIGHTNESS = 0.45
# The picture's own colours are mostly taken out below the heat, so that colour means heat.
_SATURATION = 0.25
# Colour is laid on from here, in parts of `strength`, up to full strength at heat 1: so that the
# picture stays readable where there is no evidence.
_BASE_OPACITY = 0.5


def heat_on_original(
    heat: NDArray[np.float32], size: tuple[int, int], box: tuple[float, float, float, float]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A map in the model's frame, laid back over the original picture.

    Parameters
    ----------
    heat : (H,W) float32.
    size : (width, height) of the original.
    box : what the model saw of it, in its pixels; not rounded.

    Returns
    -------
    (height, width) float32, 0 outside the box; and where the model saw, bool.
    """
    width, height = size
    left, top, right, bottom = box
    # An affine map from original pixel centres to the model's pixels, bilinear.
    scale_x = heat.shape[1] / (right - left)
    scale_y = heat.shape[0] / (bottom - top)
    image = Image.fromarray(np.pad(heat, 1, mode="edge"))  # so that edges are not blended with 0
    laid = image.transform(
        size,
        Image.Transform.AFFINE,
        (scale_x, 0, 1 - left * scale_x, 0, scale_y, 1 - top * scale_y),
        Image.Resampling.BILINEAR,
    )
    x = np.arange(width) + 0.5
    y = np.arange(height) + 0.5
    seen = ((y >= top) & (y <= bottom))[:, None] & ((x >= left) & (x <= right))[None, :]
    return np.where(seen, np.asarray(laid), np.float32(0)), seen


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
    box : what the model saw, in pixels of the original.
    strength : in [0, 1].
    """
    laid, seen = heat_on_original(heat, original.size, box)
    picture = np.asarray(original, dtype=np.float32)
    grey = picture @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    picture = grey[..., None] + _SATURATION * (picture - grey[..., None])
    opacity = (strength * (_BASE_OPACITY + (1 - _BASE_OPACITY) * laid))[..., None]
    blended = picture * (1 - opacity) + colorize(laid).astype(np.float32) * opacity
    result = np.where(seen[..., None], blended, picture * _UNSEEN_BRIGHTNESS)
    return Image.fromarray(np.rint(result).astype(np.uint8))


def add_caption(picture: Image.Image, text: str) -> Image.Image:
    """The picture with a dark strip below it that holds one line of text."""
    size = max(12, picture.width // 24)
    font = ImageFont.load_default(size)
    while size > 8 and font.getlength(text) > picture.width - size:
        size -= 1
        font = ImageFont.load_default(size)
    result = Image.new("RGB", (picture.width, picture.height + 2 * size), (24, 20, 32))
    result.paste(picture, (0, 0))
    place = (size // 2, picture.height + size)
    ImageDraw.Draw(result).text(place, text, fill=(245, 240, 230), font=font, anchor="lm")
    return result
