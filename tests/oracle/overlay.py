"""A heatmap over a picture, pixel by pixel."""

from __future__ import annotations

import numpy as np


def overlay(
    picture: np.ndarray,
    heat: np.ndarray,
    colors: np.ndarray,
    box: tuple[float, float, float, float],
    strength: float,
) -> np.ndarray:
    """(height,width,3) float64 in [0, 255].

    Parameters
    ----------
    picture : (height,width,3) uint8.
    heat : (H,W) in [0, 1].
    colors : (256,3) of heat 0 to 1.
    box : where the heat lies, in pixels of the picture.
    """
    result = np.empty(picture.shape)
    left, top, right, bottom = box
    for y in range(len(picture)):
        for x in range(picture.shape[1]):
            rgb = picture[y, x].astype(np.float64)
            grey = rgb @ (0.299, 0.587, 0.114)
            rgb = grey + 0.25 * (rgb - grey)
            if not (left <= x + 0.5 <= right and top <= y + 0.5 <= bottom):
                result[y, x] = 0.45 * rgb
                continue
            value = bilinear(
                heat,
                (y + 0.5 - top) * heat.shape[0] / (bottom - top) - 0.5,
                (x + 0.5 - left) * heat.shape[1] / (right - left) - 0.5,
            )
            opacity = strength * (0.5 + 0.5 * value)
            color = colors[round(value * 255)].astype(np.float64)
            result[y, x] = rgb * (1 - opacity) + color * opacity
    return result


def bilinear(values: np.ndarray, row: float, column: float) -> float:
    """The value between pixel centres; beyond the edges, that of the edge."""
    r, c = int(np.floor(row)), int(np.floor(column))
    total = 0.0
    for i, weight_i in ((r, 1 - (row - r)), (r + 1, row - r)):
        for j, weight_j in ((c, 1 - (column - c)), (c + 1, column - c)):
            i_in = min(max(i, 0), values.shape[0] - 1)
            j_in = min(max(j, 0), values.shape[1] - 1)
            total += weight_i * weight_j * float(values[i_in, j_in])
    return total
