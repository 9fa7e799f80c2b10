"""The rows of a batch as the paper writes them, in float64, one pixel at a time.

``ε_k = (1 - M_k) Z_k``; the rows are ``X M_k + ε_k`` and ``X + ε_k`` and, for antithetic noise, the
same with ``-ε_k``; a team's are the same with a mask of zeros and ones, sharp at the patches'
edges, and with its complement. The normals are given; the mask is widened here.
"""

from __future__ import annotations

import math

import numpy as np


def bilinear_pixel(low, size, y, x):
    """Value at pixel (y, x) of `low` (h, w) upsampled to `size`; half-pixel centres, clamped."""

    def neighbours(i, pixels, cells):
        position = max((i + 0.5) * cells / pixels - 0.5, 0.0)
        left = min(math.floor(position), cells - 1)
        return left, min(left + 1, cells - 1), position - left

    top, bottom, down = neighbours(y, size[0], low.shape[0])
    left, right, across = neighbours(x, size[1], low.shape[1])
    return (
        (1 - down) * (1 - across) * float(low[top, left])
        + (1 - down) * across * float(low[top, right])
        + down * (1 - across) * float(low[bottom, left])
        + down * across * float(low[bottom, right])
    )


def upsampled(low, size):
    """`low` (h, w) to (H, W) float64."""
    return np.array(
        [[bilinear_pixel(low, size, y, x) for x in range(size[1])] for y in range(size[0])]
    )


def patch_of_pixel(low, size, y, x):
    """Value of the patch that the centre of pixel (y, x) lies in."""
    row = math.floor((y + 0.5) * low.shape[0] / size[0])
    column = math.floor((x + 0.5) * low.shape[1] / size[1])
    return float(low[row, column])


def blended_rows(image, low, normals, scale, sharp=False):
    """The rows of one mask by kind, all eight: (C, H, W) float64 each.

    Kinds: 1 leaves the image unmasked, 2 subtracts the noise, 4 takes the complement of the mask.
    """
    channels, height, width = image.shape
    rows = {kind: np.zeros(image.shape) for kind in range(8)}
    for y in range(height):
        for x in range(width):
            widen = patch_of_pixel if sharp else bilinear_pixel
            mask = widen(low, (height, width), y, x)
            for c in range(channels):
                pixel, normal_value = float(image[c, y, x]), float(normals[c, y, x])
                for kind in rows:
                    keep = 1 - mask if kind & 4 else mask
                    noise = scale * (1 - keep) * normal_value
                    shown = pixel if kind & 1 else pixel * keep
                    rows[kind][c, y, x] = shown - noise if kind & 2 else shown + noise
    return rows


def philox4x32_10(counter, key):
    """Ten rounds on Python integers: one counter of four words, a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (p1 >> 32) ^ c1 ^ k0,
            p1 & 0xFFFFFFFF,
            (p0 >> 32) ^ c3 ^ k1,
            p0 & 0xFFFFFFFF,
        )
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def normal(seed, mask_index, channel, y, x):
    """One value of ``Z_k``, in float64."""
    quad, lane = divmod(x, 4)
    words = philox4x32_10((quad, y, channel, mask_index), (seed % 2**32, seed >> 32))
    first, second = words[:2] if lane < 2 else words[2:]
    radius = math.sqrt(-2 * math.log(1 - (first >> 8) / 2**24))
    angle = 2 * math.pi * (second >> 8) / 2**24
    return radius * (math.cos(angle) if lane % 2 == 0 else math.sin(angle))
