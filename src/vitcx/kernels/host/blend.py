"""Masked and noised batches: the engine's input, made from images, low-resolution masks and a seed.

This is the CPU path and the twin that the CUDA kernel is tested against. One `Perturbation` is one
mask of one image with one draw of noise; it fills up to `MOST_ROWS` rows of the batch in one pass
over that noise. With ``w`` the weight of a pixel, a row is::

    X w + σ (1 - w) Z

A row's kind is a sum of flags: `UNMASKED` leaves the image whole (``X + ...``), `MINUS` takes the
noise with the other sign, `COMPLEMENT` takes ``1 - w`` for ``w``. The weight is ``U m``, bilinear,
or, for a `sharp` mask, the value of the patch that the pixel lies in. With ``σ = 0`` no noise is
drawn at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.host.noise import NoiseCache
from vitcx.kernels.host.upsampling import spread, upsample

UNMASKED, MINUS, COMPLEMENT = 1, 2, 4
# The kinds that estimators use, by the names of the paper and of its relatives.
MASKED = 0
NOISY = UNMASKED
MASKED_MINUS = MINUS
NOISY_MINUS = UNMASKED | MINUS
KEPT = MASKED
DROPPED = COMPLEMENT
# Rows of one perturbation, at the most: what the kernel's record has room for.
MOST_ROWS = 4


@dataclass(frozen=True)
class Perturbation:
    """One mask of one image with one draw of noise.

    Attributes
    ----------
    image : index into the images of the call.
    mask : index into the masks of the call.
    noise : k of ``Z_k``: the mask's index within its own explanation.
    seed : of the noise, in [0, 2^64).
    scale : σ, the noise's standard deviation in normalised units.
    rows : (kind, batch row) of each row, 1 to `MOST_ROWS`; a kind is a sum of flags.
    sharp : whether a patch's weight is the same all over the patch.
    """

    image: int
    mask: int
    noise: int
    seed: int
    scale: float
    rows: tuple[tuple[int, int], ...]
    sharp: bool = False


def blend(
    images: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    masks: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    perturbations: Sequence[Perturbation],
    out: NDArray[np.float32],
    noise: NoiseCache,
) -> None:
    """Fill the rows of `out` that the perturbations name; other rows are left as they are.

    Parameters
    ----------
    images : N of (channels,H,W) float32, normalised as the model wants them.
    masks : K of (h,w) float32 at patch resolution, their upsampled values in [0, 1].
    perturbations : no two name the same row.
    out : (B,channels,H,W) float32, written in place.
    noise : where the normals come from.
    """
    shape = (out.shape[1], out.shape[2], out.shape[3])
    size = shape[1:]
    scratch = np.empty(shape, dtype=np.float32)  # once: its first touch costs more than its use
    for perturbation in perturbations:
        image = images[perturbation.image]
        widen = spread if perturbation.sharp else upsample
        mask = widen(masks[perturbation.mask], size)
        normals: NDArray[np.float32] | None = None
        if perturbation.scale != 0:
            normals = noise.normals(perturbation.seed, perturbation.noise, shape)
        for flipped in (0, COMPLEMENT):
            rows = [(kind, row) for kind, row in perturbation.rows if kind & COMPLEMENT == flipped]
            if rows:
                weight = np.float32(1) - mask if flipped else mask
                _fill(image, weight, normals, perturbation.scale, rows, out, scratch)


def _fill(
    image: NDArray[np.float32],
    weight: NDArray[np.float32],
    normals: NDArray[np.float32] | None,
    scale: float,
    rows: Sequence[tuple[int, int]],
    out: NDArray[np.float32],
    scratch: NDArray[np.float32],
) -> None:
    """The rows of one weight: they share its noise, ``σ (1 - w) Z``, which is made in `scratch`."""
    epsilon: NDArray[np.float32] | None = None
    if normals is not None:
        amplitude = np.float32(scale) * (np.float32(1) - weight)
        epsilon = np.multiply(normals, amplitude, out=scratch)
    for kind, row in rows:
        slot = out[row]
        base = image if kind & UNMASKED else np.multiply(image, weight, out=slot)
        if epsilon is not None:
            operation = np.subtract if kind & MINUS else np.add
            operation(base, epsilon, out=slot)
        elif base is not slot:
            slot[...] = base
