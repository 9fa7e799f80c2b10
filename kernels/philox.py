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
SEED_LIMIT = 1 << 64


def philox4x32_10(
    counter: tuple[NDArray[np.uint64], ...], key: tuple[int, int]
) -> tuple[NDArray[np.uint64], ...]:
    """Ten rounds of Philox4x32.

    Parameters
    ----------
    counter : four arrays of 32-bit values held in uint64, of shapes that broadcast.
    key : two 32-bit values.

    Returns
    -------
    four arrays of 32-bit values held in uint64, of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    m0, m1 = (np.uint64(m) for m in _MULTIPLIERS)
    for _ in range(_ROUNDS):
        p0 = m0 * c0  # 32 by 32 bits: the product fits in 64
        p1 = m1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0 = (k0 + _WEYL[0]) & 0xFFFFFFFF
        k1 = (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


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
    (C, H, W) float32; the largest magnitude possible is ``sqrt(48 log 2)``, about 5.77.
    """
    channels, height, width = shape
    quads = -(-width // 4)
    counter = (
        np.arange(quads, dtype=np.uint64)[None, None, :],
        np.arange(height, dtype=np.uint64)[None, :, None],
        np.arange(channels, dtype=np.uint64)[:, None, None],
        np.full((1, 1, 1), mask_index, dtype=np.uint64),
    )
    words = philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32))
    uniforms = [(w >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24) for w in words]
    normals = np.empty((channels, height, quads, 4), dtype=np.float32)
    for pair in (0, 2):
        radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - uniforms[pair]))
        angle = np.float32(2 * np.pi) * uniforms[pair + 1]
        np.multiply(radius, np.cos(angle), out=normals[..., pair])
        np.multiply(radius, np.sin(angle), out=normals[..., pair + 1])
    return normals.reshape(channels, height, quads * 4)[:, :, :width]
