"""Bilinear upsampling, pixel by pixel: half-pixel centres, edges clamped."""

import math

import numpy as np


def upsample(low, size):
    """(h,w) to (H,W), float64."""
    cells_y, cells_x = low.shape
    height, width = size
    result = np.zeros(size)
    for y in range(height):
        for x in range(width):
            v = max((y + 0.5) * cells_y / height - 0.5, 0)
            u = max((x + 0.5) * cells_x / width - 0.5, 0)
            j, i = math.floor(v), math.floor(u)
            down, right = min(j + 1, cells_y - 1), min(i + 1, cells_x - 1)
            b, a = v - j, u - i
            result[y, x] = (
                (1 - b) * (1 - a) * low[j, i]
                + (1 - b) * a * low[j, right]
                + b * (1 - a) * low[down, i]
                + b * a * low[down, right]
            )
    return result
