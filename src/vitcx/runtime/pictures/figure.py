"""The second figure: what was seen, which masks mattered, how often each pixel was covered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitcx.kernels.host.upsampling import upsample
from vitcx.runtime.errors import MissingExtraError
from vitcx.runtime.pictures.colormap import color_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FloatArray = NDArray[np.float32]


def draw_figure(
    original: Image.Image,
    box: tuple[float, float, float, float],
    title: str,
    *,
    saliency: FloatArray,
    coverage: FloatArray,
    masks: FloatArray,
    impacts: FloatArray,
    count: int,
) -> Figure:
    """Picture, saliency and coverage above; below, the `count` masks with the highest impacts.

    Masks are drawn as what they let through: the picture times the mask.

    Parameters
    ----------
    original, box : the picture, and what the model saw of it (left, top, right, bottom).
    title : of the target.
    saliency, coverage : (H,W) of the target.
    masks, impacts : (K,h,w) and (K,).

    Raises
    ------
    MissingExtraError
        Without matplotlib (extra ``plot``).
    """
    try:
        from matplotlib.colors import ListedColormap

        from vitcx.runtime.pictures.drawn_figure import DrawnFigure, finish, show_image
    except ImportError:
        raise MissingExtraError("the figure", "matplotlib", "plot") from None
    colors = ListedColormap(color_table() / 255.0)
    size = coverage.shape
    seen = original.transform((size[1], size[0]), Image.Transform.EXTENT, box)
    strongest = np.argsort(-impacts, kind="stable")[:count]
    columns = max(3, len(strongest))
    figure = DrawnFigure(figsize=(2.3 * columns, 5.4), layout="constrained")
    grid = figure.add_gridspec(2, columns)
    top = figure.add_subfigure(grid[0, :]).subplots(1, 3)
    show_image(top[0], seen, title)
    shown = top[1].imshow(saliency, cmap=colors)
    finish(top[1], "saliency (mean impact of covering masks)")
    figure.colorbar(shown, ax=top[1], fraction=0.046)
    shown = top[2].imshow(coverage, cmap="gray", vmin=0, vmax=1)
    finish(top[2], f"pixel coverage by {len(masks)} masks")
    figure.colorbar(shown, ax=top[2], fraction=0.046)
    if len(strongest):
        bottom = figure.add_subfigure(grid[1, :])
        bottom.suptitle("masks of the greatest impact")
        pixels = np.asarray(seen, dtype=np.float32) / 255
        for axes, k in zip(
            np.atleast_1d(bottom.subplots(1, len(strongest))), strongest, strict=True
        ):
            mask = np.clip(upsample(masks[k], (size[0], size[1])), 0, 1)
            show_image(axes, pixels * mask[..., None], f"mask {k}: {impacts[k]:.3f}")
    return figure
