"""A figure of matplotlib that a notebook shows by itself, without pyplot and its global state.

Importing this module needs matplotlib (extra ``plot``).
"""

from __future__ import annotations

import io
import textwrap
from typing import Any

from matplotlib.figure import Figure

_SHOWN_DPI = 80
_TITLE_LETTERS = 36  # in a line


class DrawnFigure(Figure):
    """A `matplotlib.figure.Figure`; as the last line of a notebook's cell it is shown as PNG."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=_SHOWN_DPI)
        return png.getvalue()


def show_image(axes: Any, image: Any, title: str) -> None:
    """An image in its axes, with a title and without ticks."""
    axes.imshow(image)
    finish(axes, title)


def finish(axes: Any, title: str) -> None:
    """The title of axes, and no ticks. The text is shown as it is: a ``$`` starts no formula."""
    axes.set_title(textwrap.fill(title, _TITLE_LETTERS), fontsize=9, parse_math=False)
    axes.set_axis_off()
