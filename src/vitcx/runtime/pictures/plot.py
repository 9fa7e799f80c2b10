"""The first figure: the picture, a map for each target, and the contrast of two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitcx.runtime.errors import MissingExtraError
from vitcx.runtime.pictures.gallery import Box

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Blue and red keep apart for colour-blind eyes.
_CONTRAST_COLORS = "RdBu_r"
_CONTRAST_OPACITY = 0.85
_PANEL_INCHES, _MOST_COLUMNS = 2.8, 4


def draw_plot(
    picture: Image.Image,
    overlays: Sequence[Image.Image],
    titles: Sequence[str],
    contrast: tuple[NDArray[np.float32], Box, str, str] | None,
) -> Figure:
    """The picture, the overlays, and the contrast if there is one, in a row.

    Parameters
    ----------
    picture : RGB.
    overlays, titles : one for each target.
    contrast : (H,W) differences, where they lie in the picture, and the names of what positive and
        negative values speak for.

    Raises
    ------
    MissingExtraError
        Without matplotlib (extra ``plot``).
    """
    try:
        from vitcx.runtime.pictures.drawn_figure import DrawnFigure, finish, show_image
    except ImportError:
        raise MissingExtraError("the plot", "matplotlib", "plot") from None
    panels = 1 + len(overlays) + (contrast is not None)
    columns = min(panels, _MOST_COLUMNS)
    rows = -(-panels // columns)
    height = _PANEL_INCHES * picture.height / picture.width + 0.5
    figure = DrawnFigure(figsize=(_PANEL_INCHES * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[panels:]:
        unused.remove()
    show_image(axes[0], picture, "picture")
    for place, shown, title in zip(axes[1:], overlays, titles, strict=False):
        show_image(place, shown, title)
    if contrast is not None:
        values, (left, top, right, bottom), name, other = contrast
        most = float(np.abs(values).max()) or 1.0
        place = axes[panels - 1]
        place.imshow(picture.convert("L"), cmap="gray", vmin=0, vmax=255)
        place.imshow(
            values,
            cmap=_CONTRAST_COLORS,
            vmin=-most,
            vmax=most,
            alpha=_CONTRAST_OPACITY * np.abs(values) / most,
            extent=(left - 0.5, right - 0.5, bottom - 0.5, top - 0.5),
            interpolation="bilinear",
        )
        place.set_xlim(-0.5, picture.width - 0.5)
        place.set_ylim(picture.height - 0.5, -0.5)
        finish(place, f"red: {name}, blue: {other}")
    return figure
