"""Philox4x32-10 and Box-Muller on Python integers and floats."""

import math

import numpy as np

WORD = 0xFFFFFFFF


def philox4x32_10(counter, key):
    """Four and two 32-bit integers to four."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 1 << 32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) & WORD, (k[1] + 0xBB67AE85) & WORD]
    return tuple(c)


def normal(seed, mask_index, channel, y, x):
    """One value of Z, float64."""
    quad, lane = divmod(x, 4)
    words = philox4x32_10((quad, y, channel, mask_index), (seed & WORD, seed >> 32))
    first, second = words[:2] if lane < 2 else words[2:]
    radius = math.sqrt(-2 * math.log(1 - (first >> 8) / 2**24))
    angle = 2 * math.pi * (second >> 8) / 2**24
    return radius * (math.cos(angle) if lane % 2 == 0 else math.sin(angle))


def normals(seed, mask_index, shape):
    """(C,H,W) float64."""
    values = np.empty(shape)
    for place in np.ndindex(*shape):
        values[place] = normal(seed, mask_index, *place)
    return values
