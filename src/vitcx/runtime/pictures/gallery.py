"""Pictures as a notebook shows them: at a size one can look at, several side by side."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

Box = tuple[float, float, float, float]

# The longer side of a shown picture, in pixels: larger ones are reduced, smaller ones enlarged.
MOST_SIDE, LEAST_SIDE = 512, 256
_BACKGROUND = (24, 20, 32)  # of a caption


def at_shown_size(picture: Image.Image, box: Box) -> tuple[Image.Image, Box]:
    """The picture with its longer side within `LEAST_SIDE` and `MOST_SIDE`, and its box with it.

    Parameters
    ----------
    picture : RGB.
    box : (left, top, right, bottom), in the picture's pixels.
    """
    longer = max(picture.size)
    factor = min(max(longer, LEAST_SIDE), MOST_SIDE) / longer
    if factor == 1:
        return picture, box
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    scale_x, scale_y = size[0] / picture.width, size[1] / picture.height
    left, top, right, bottom = box
    shown = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    return shown, (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)


def side_by_side(pictures: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """One picture with these in a row, `gap` pixels apart."""
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), _BACKGROUND)
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row
