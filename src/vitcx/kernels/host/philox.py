"""Counter-based noise: Philox4x32-10 and Box-Muller.

``Z_k(c, y, x)`` is a pure function of (seed, mask index k, colour channel c, row y, column x): it
does not depend on the image's size, on the batch, or on the order in which pixels are visited. So
NumPy, the CUDA kernel and a second machine give the same numbers.

The four words of one Philox call serve four neighbouring columns. With ``q, lane = divmod(x, 4)``::

    key     = (seed mod 2^32, seed div 2^32)
    counter = (q, y, c, k)
    r0..r3  = philox4x32_10(counter, key)
    u(r)    = (r >> 8) 2^-24                     in [0, 1), exact in float32
    radius  = sqrt(-2 log(1 - u(r_a)))           1 - u is in (0, 1]: the logarithm is finite
    angle   = 2 pi u(r_b)
    lanes 0, 1: radius cos angle, radius sin angle of (r0, r1); lanes 2, 3: of (r2, r3)

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). The
published test vectors of Random123 are in the tests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_DROPPED_BITS = np.uint64(8)  # a float32 in [0, 1) holds 24
_BROADCAST_ROUNDS = 2  # in these, no word but one depends on more than one axis
_SCRATCH_ARRAYS = 6
SEED_LIMIT = 1 << 64


def _round(
    counter: tuple[NDArray[np.uint64], ...], k0: int, k1: int
) -> tuple[NDArray[np.uint64], ...]:
    c0, c1, c2, c3 = counter
    p0 = np.uint64(_MULTIPLIERS[0]) * c0  # 32 by 32 bits: the product fits in 64
    p1 = np.uint64(_MULTIPLIERS[1]) * c2
    return (
        (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
        p1 & _LOW,
        (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
        p0 & _LOW,
    )


def philox4x32_10(
    counter: tuple[NDArray[np.uint64], ...],
    key: tuple[int, int],
    scratch: NDArray[np.uint64] | None = None,
) -> NDArray[np.uint64]:
    """Ten rounds of Philox4x32.

    Parameters
    ----------
    counter : four arrays of 32-bit values held in uint64, of shapes that broadcast to some `shape`.
    key : two 32-bit values.
    scratch : (6, *shape) uint64 to work in, for callers that make many blocks. The first touch of
        fresh memory costs more than the arithmetic done on it.

    Returns
    -------
    (4, *shape) uint64 holding 32-bit values; a part of `scratch` where that is given.
    """
    keys = [
        tuple((k + r * w) & 0xFFFFFFFF for k, w in zip(key, _WEYL, strict=True))
        for r in range(_ROUNDS)
    ]
    # Counters usually vary along one axis each: broadcasting makes the first rounds nearly free.
    for k0, k1 in keys[:_BROADCAST_ROUNDS]:
        counter = _round(counter, k0, k1)
    if scratch is None:
        shape = np.broadcast_shapes(*(c.shape for c in counter))
        scratch = np.empty((_SCRATCH_ARRAYS, *shape), dtype=np.uint64)
    c0, c1, c2, c3, p0, p1 = scratch
    for held, value in zip((c0, c1, c2, c3), counter, strict=True):
        held[...] = value
    m0, m1 = (np.uint64(m) for m in _MULTIPLIERS)
    for k0, k1 in keys[_BROADCAST_ROUNDS:]:
        np.multiply(c0, m0, out=p0)
        np.multiply(c2, m1, out=p1)
        for product, low, high, k in ((p1, c1, c0, k0), (p0, c3, c2, k1)):
            np.right_shift(product, _SHIFT, out=high)
            np.bitwise_xor(high, low, out=high)
            np.bitwise_xor(high, np.uint64(k), out=high)
            np.bitwise_and(product, _LOW, out=low)
    return scratch[:4]


def standard_normals(
    seed: int, mask_index: int, shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """``Z_k`` before the scale σ: independent N(0, 1) values.

    Parameters
    ----------
    seed : in [0, 2^64).
    mask_index : k, in [0, 2^32).
    shape : (C, H, W).

    Returns
    -------
    (C, H, W) float32, contiguous unless 4 does not divide W; the largest magnitude possible is
    ``sqrt(48 log 2)``, about 5.77.
    """
    channels, height, width = shape
    quads = -(-width // 4)
    normals = np.empty((channels, height, quads, 4), dtype=np.float32)
    scratch = np.empty((_SCRATCH_ARRAYS, height, quads), dtype=np.uint64)
    for channel in range(channels):  # one at a time: what is worked on stays in a core's cache
        _fill_channel(normals[channel], seed, mask_index, channel, scratch)
    return normals.reshape(channels, height, quads * 4)[:, :, :width]


def _fill_channel(
    out: NDArray[np.float32],
    seed: int,
    mask_index: int,
    channel: int,
    scratch: NDArray[np.uint64],
) -> None:
    """Box-Muller for one channel: `out` is (H, quads, 4)."""
    height, quads, _ = out.shape
    counter = (
        np.arange(quads, dtype=np.uint64)[None, :],
        np.arange(height, dtype=np.uint64)[:, None],
        np.full((1, 1), channel, dtype=np.uint64),
        np.full((1, 1), mask_index, dtype=np.uint64),
    )
    words = philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32), scratch)
    # The last two scratch arrays are free again: four float32 arrays fit into them.
    radius, angle, wave, _ = scratch[4:].view(np.float32).reshape(4, height, quads)
    for pair in (0, 2):
        for word, uniform in zip(words[pair : pair + 2], (radius, angle), strict=True):
            np.right_shift(word, _DROPPED_BITS, out=word)
            np.copyto(uniform, word.view(np.int64), casting="unsafe")  # 24 bits: exact
            np.multiply(uniform, np.float32(2.0**-24), out=uniform)
        np.subtract(np.float32(1), radius, out=radius)
        np.log(radius, out=radius)
        np.multiply(radius, np.float32(-2), out=radius)
        np.sqrt(radius, out=radius)
        np.multiply(angle, np.float32(2 * np.pi), out=angle)
        np.multiply(radius, np.cos(angle, out=wave), out=out[..., pair])
        np.multiply(radius, np.sin(angle, out=wave), out=out[..., pair + 1])
