"""Masked and noised batches: the engine's input, made from images, low-resolution masks and a seed.

This is the CPU path and the twin that the CUDA kernel is tested against. One `Job` is one mask of
one image with one draw of noise; it fills up to `len(ROW_KINDS)` rows of the batch in one pass over
that noise. With ``M = U m`` and ``e = σ (1 - M) Z``::

    MASKED        X M + e          NOISY        X + e
    MASKED_MINUS  X M - e          NOISY_MINUS  X - e

With ``σ = 0`` no noise is drawn at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.host.noise import NoiseCache
from vitcx.kernels.host.upsampling import upsample

MASKED, NOISY, MASKED_MINUS, NOISY_MINUS = range(4)
ROW_KINDS = ("masked", "noisy", "masked_minus", "noisy_minus")
SKIP = -1


@dataclass(frozen=True)
class Job:
    """One mask of one image.

    Attributes
    ----------
    image : index into the images of the call.
    mask : index into the masks of the call.
    noise : k of ``Z_k``: the mask's index within its own explanation.
    seed : of the noise, in [0, 2^64).
    scale : σ, the noise's standard deviation in normalised units.
    rows : the batch row that each of `ROW_KINDS` goes to, or `SKIP`.
    """

    image: int
    mask: int
    noise: int
    seed: int
    scale: float
    rows: tuple[int, int, int, int]


def blend(
    images: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    masks: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    jobs: Sequence[Job],
    out: NDArray[np.float32],
    noise: NoiseCache,
) -> None:
    """Fill the rows of `out` that the jobs name; other rows are left as they are.

    Parameters
    ----------
    images : N of (channels,H,W) float32, normalised as the model wants them.
    masks : K of (h,w) float32 at patch resolution, their upsampled values in [0, 1].
    jobs : no two name the same row.
    out : (B,channels,H,W) float32, written in place.
    noise : where the normals come from.
    """
    shape = (out.shape[1], out.shape[2], out.shape[3])
    size = shape[1:]
    scratch = np.empty(shape, dtype=np.float32)  # once: its first touch costs more than its use
    for job in jobs:
        image = images[job.image]
        mask = upsample(masks[job.mask], size)
        masked, noisy, masked_minus, noisy_minus = job.rows
        epsilon: NDArray[np.float32] | None = None
        if job.scale != 0:
            normals = noise.normals(job.seed, job.noise, shape)
            amplitude = np.float32(job.scale) * (np.float32(1) - mask)
            epsilon = np.multiply(normals, amplitude, out=scratch)
        for row, minus_row, base_is_masked in (
            (masked, masked_minus, True),
            (noisy, noisy_minus, False),
        ):
            for target, operation in ((row, np.add), (minus_row, np.subtract)):
                if target == SKIP:
                    continue
                slot = out[target]
                base = np.multiply(image, mask, out=slot) if base_is_masked else image
                if epsilon is not None:
                    operation(base, epsilon, out=slot)
                elif base is not slot:
                    slot[...] = base
