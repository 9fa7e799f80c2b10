"""Which of a model's blocks is taken, where they are of one resolution or of several.

Without PyTorch, so that models and ONNX files go by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitcx.runtime.errors import InputError

# Of several resolutions the one nearest to patches of so many pixels: the paper's stage of a Swin.
PATCH = 16
# The paper's default δ: 0.1 for ViT and DeiT, of one resolution, 0.05 for Swin.
FLAT_THRESHOLD, HIERARCHICAL_THRESHOLD = 0.1, 0.05


def choose_block(
    grids: Sequence[tuple[int, int]], stage: int | None, block: int, height: int
) -> tuple[int, bool]:
    """The block that is asked for.

    Parameters
    ----------
    grids : (h, w) of each block, in their order.
    stage : of the resolutions, from the finest; None takes that nearest to `PATCH`.
    block : of the blocks of that resolution.
    height : of the model's pictures, in pixels.

    Returns
    -------
    its place in `grids`, and whether there are several resolutions.

    Raises
    ------
    InputError
        If there is no such stage or block.
    """
    resolutions = sorted(set(grids), key=math.prod, reverse=True)
    chosen = _choose_resolution(resolutions, stage, height)
    places = [place for place, grid in enumerate(grids) if grid == chosen]
    if not -len(places) <= block < len(places):
        raise InputError(f"block is {block}, expected one of {-len(places)} to {len(places) - 1}")
    return places[block], len(resolutions) > 1


def default_threshold(*, hierarchical: bool) -> float:
    """The default δ of a model that has several resolutions, or one."""
    return HIERARCHICAL_THRESHOLD if hierarchical else FLAT_THRESHOLD


def _choose_resolution(
    resolutions: Sequence[tuple[int, int]], stage: int | None, height: int
) -> tuple[int, int]:
    if stage is None:
        return min(resolutions, key=lambda grid: abs(math.log2(height / grid[0] / PATCH)))
    if not -len(resolutions) <= stage < len(resolutions):
        raise InputError(
            f"stage is {stage}, and blocks of {len(resolutions)} resolutions were found "
            f"({', '.join(f'{h}x{w}' for h, w in resolutions)}): expected one of "
            f"{-len(resolutions)} to {len(resolutions) - 1}"
        )
    return resolutions[stage]
