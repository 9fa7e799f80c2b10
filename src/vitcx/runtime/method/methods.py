"""Explanation methods that work by masks: where the masks come from, and what their scores mean.

Each is a set of masks, an estimator of a mask's impact, and a rule of aggregation; packing,
blending and scoring are the same for all, on every engine.

=============  ==========================  ===================  ==============================
name           masks                       impact of a mask     map
=============  ==========================  ===================  ==============================
vit-cx         clustered ViT masks         eq. 2                Σ s M / ρ (eq. 5)
score-cam      every ViT mask              f(y|X⊙M)             Σ s M (eq. 1)
rise           random grids                f(y|X⊙M)             Σ s M / ρ
occlusion      all but a sliding square    f(y|X) - f(y|X⊙M)    mean over the squares on a pixel
random-cx      random grids (variant 2)    eq. 2                Σ s M / ρ (eq. 5)
=============  ==========================  ===================  ==============================

Sources: Wang et al., "Score-CAM" (CVPRW 2020), as the ViT-CX paper adapts it; Petsiuk et al.,
"RISE" (BMVC 2018); Zeiler and Fergus, "Visualizing and understanding convolutional networks"
(ECCV 2014).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.host.blend import MASKED
from vitcx.runtime.errors import InputError
from vitcx.runtime.method.estimators import Estimator, Scores

if TYPE_CHECKING:  # settings knows the methods' names
    from vitcx.runtime.settings import Settings

FloatArray = NDArray[np.float32]

METHOD_NAMES = ("vit-cx", "score-cam", "rise", "occlusion", "random-cx")

# RISE's: a grid of 7 x 7 cells, each kept with probability 1/2, 4,000 masks. The ViT-CX paper's
# variant 2 takes 5,000.
RISE_CELLS = 7
RISE_KEEP = 0.5
DEFAULT_RANDOM_MASKS = {"rise": 4000, "random-cx": 5000}
# Shifts are multiples of a quarter of a cell: then the nodes of the shifted surface are nodes of
# one 28 x 28 grid, and a mask is exact on 28 x 28 numbers, whatever the picture's size.
RISE_SHIFTS = 4

# Occlusion's square is a seventh of the picture's short side (32 pixels of 224) and moves by half.
OCCLUSION_SHARE = 7


@dataclass(frozen=True)
class Occlusion:
    """A square of `window` pixels that moves by `step` pixels."""

    window: int
    step: int


@functools.lru_cache(maxsize=2)
def random_masks(count: int, seed: int) -> FloatArray:
    """RISE's masks: random binary grids, upsampled bilinearly, each shifted at random.

    The published code shifts by whole pixels; here the shift is a multiple of a quarter of a cell,
    in each axis, and beyond the outermost nodes (1/56 of the picture) the surface is level.

    Returns
    -------
    (count,28,28) float32 in [0, 1] at mask resolution: upsampled, it is the mask. The first masks
    of a longer run with the same seed are the same. Read-only: pictures share it.
    """
    nodes = RISE_CELLS * RISE_SHIFTS
    masks = np.empty((count, nodes, nodes), dtype=np.float32)
    # Node j of the fine grid lies at (j + 1/2) / RISE_SHIFTS cells.
    position = (np.arange(nodes) + 0.5) / RISE_SHIFTS
    for k in range(count):
        rng = np.random.default_rng((seed, k))
        # One more cell on each side of the picture, so that a shift never runs out of the grid.
        grid = rng.random((RISE_CELLS + 2, RISE_CELLS + 2)) < RISE_KEEP
        shift = (rng.integers(0, RISE_SHIFTS, size=2) + 0.5) / RISE_SHIFTS
        rows, columns = (_between(position + s) for s in shift)
        masks[k] = rows @ grid.astype(np.float32) @ columns.T
    masks.flags.writeable = False
    return masks


def _between(position: NDArray[np.float64]) -> FloatArray:
    """(n, cells + 2) weights of linear interpolation at positions in units of cells."""
    left = np.floor(position).astype(np.int64)
    fraction = position - left
    weights = np.zeros((len(position), RISE_CELLS + 2), dtype=np.float32)
    rows = np.arange(len(position))
    weights[rows, left] = 1 - fraction
    weights[rows, left + 1] = fraction
    return weights


def occlusion_of(window: int | None, step: int | None, size: tuple[int, int]) -> Occlusion:
    """The square for what the user gave; None takes the default for a picture of (H, W) pixels.

    Raises
    ------
    InputError
        If the square does not fit, or squares would leave pixels between them.
    """
    if window is None:
        window = max(1, min(size) // OCCLUSION_SHARE)
    if step is None:
        step = max(1, window // 2)
    if window > min(size):
        raise InputError(
            f"window is {window} pixels and the picture {size[0]}x{size[1]}: give a smaller one"
        )
    if step > window:
        raise InputError(
            f"step is {step} and window {window} pixels: a step beyond the window leaves pixels "
            "that no square covers"
        )
    return Occlusion(window, step)


def occlusion_masks(occlusion: Occlusion, size: tuple[int, int]) -> FloatArray:
    """(K,H,W) float32 of 0 in the square and 1 outside, at full resolution: hard edges need it.

    The last square of each row and column touches the border, so that every pixel is covered.
    """
    tops, lefts = (_positions(occlusion, side) for side in size)
    masks = np.ones((len(tops) * len(lefts), *size), dtype=np.float32)
    for k, (top, left) in enumerate((top, left) for top in tops for left in lefts):
        masks[k, top : top + occlusion.window, left : left + occlusion.window] = 0
    return masks


def _positions(occlusion: Occlusion, side: int) -> list[int]:
    last = side - occlusion.window
    return sorted({*range(0, last, occlusion.step), last})


def mask_bytes(settings: Settings, size: tuple[int, int]) -> int:
    """What the masks of a method that makes its own take, for a picture of (H, W) pixels.

    Without making them. 0 for a method whose masks are the model's.

    Raises
    ------
    InputError
        As `occlusion_of`.
    """
    if settings.method == "occlusion":
        occlusion = occlusion_of(settings.window, settings.step, size)
        count = math.prod(len(_positions(occlusion, side)) for side in size)
        return count * math.prod(size) * np.dtype(np.float32).itemsize
    if settings.method in DEFAULT_RANDOM_MASKS:
        count = settings.mask_count or DEFAULT_RANDOM_MASKS[settings.method]
        return count * (RISE_CELLS * RISE_SHIFTS) ** 2 * np.dtype(np.float32).itemsize
    return 0


def _masked(scores: Scores, base: FloatArray) -> FloatArray:
    return scores[MASKED]


def _drop(scores: Scores, base: FloatArray) -> FloatArray:
    return base - scores[MASKED]


PLAIN = Estimator("plain", (MASKED,), False, _masked)
DROP = Estimator("drop", (MASKED,), False, _drop)


# Which methods a setting changes; one that changes nothing is refused, not ignored.
_CX = ("vit-cx", "random-cx")
APPLIES = {
    "distance_threshold": ("vit-cx",),
    "cluster_masks": ("vit-cx",),
    "noise_std": _CX,
    "estimator": _CX,
    "debias": _CX,
    "coverage_correction": (*_CX, "rise"),
    "mask_count": ("rise", "random-cx"),
    "window": ("occlusion",),
    "step": ("occlusion",),
}


def refuse_idle_settings(method: str, changed: set[str]) -> None:
    """Raise `InputError` if a setting that the user changed has no meaning for the method."""
    for name in sorted(changed):
        if name in APPLIES and method not in APPLIES[name]:
            raise InputError(
                f"{name} has no meaning for the method {method!r}: it goes with "
                f"{' and '.join(APPLIES[name])}; leave it out"
            )
