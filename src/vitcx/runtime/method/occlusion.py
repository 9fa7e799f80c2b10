"""Occlusion: a square hides a part of the picture, and moves over it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vitcx.runtime.errors import InputError
from vitcx.runtime.method.estimators.plain import LOSS
from vitcx.runtime.method.method import FloatArray, Method, Size
from vitcx.runtime.settings import Settings

# Occlusion's square is a seventh of the picture's short side (32 pixels of 224) and moves by half.
OCCLUSION_SHARE = 7


@dataclass(frozen=True)
class Occlusion:
    """A square of `window` pixels that moves by `step` pixels."""

    window: int
    step: int


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


def _square(settings: Settings, size: Size) -> Occlusion:
    return occlusion_of(settings.window, settings.step, size)


def _mask_shape(settings: Settings, size: Size) -> tuple[int, int, int]:
    square = _square(settings, size)
    return math.prod(len(_positions(square, side)) for side in size), *size


OCCLUSION = Method(
    name="occlusion",
    summary="a square that hides a part, moved over the picture",
    source="Zeiler, Fergus: Visualizing and understanding convolutional networks (ECCV 2014)",
    masks=lambda embedding, settings, size: occlusion_masks(_square(settings, size), size),
    estimator=lambda settings: LOSS,
    uses=frozenset({"window", "step", "seed"}),
    mask_shape=_mask_shape,
    credits_hidden=True,
)
