"""A perceptually uniform colour map of our own.

A smooth path through the OKLab colour space (Ottosson, "A perceptual color space for image
processing", 2020), dark violet over crimson and orange to pale yellow, walked in equal steps of
OKLab distance. Lightness rises all the way, so the map also reads in grey and to colour-blind eyes.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

ENTRIES = 256

# OKLab (lightness, green-red, blue-yellow) of the path's corners; all inside the sRGB gamut.
_CORNERS = np.array(
    [
        [0.16, 0.010, -0.045],
        [0.30, 0.070, -0.105],
        [0.44, 0.135, -0.060],
        [0.57, 0.165, 0.030],
        [0.69, 0.120, 0.110],
        [0.82, 0.035, 0.140],
        [0.97, -0.020, 0.070],
    ]
)
_LMS_FROM_LAB = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_RGB_FROM_LMS = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def oklab_path() -> NDArray[np.float64]:
    """(256,3) OKLab colours of the map, equally spaced along the path."""
    corners = np.linspace(0, 1, len(_CORNERS))
    path = PchipInterpolator(corners, _CORNERS)
    fine = np.asarray(path(np.linspace(0, 1, 20001)))
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(fine, axis=0), axis=1))])
    steps = np.linspace(0, length[-1], ENTRIES)
    return np.stack([np.interp(steps, length, fine[:, i]) for i in range(3)], axis=1)


@functools.lru_cache(maxsize=1)
def color_table() -> NDArray[np.uint8]:
    """(256,3) uint8 sRGB; read-only."""
    linear = ((oklab_path() @ _LMS_FROM_LAB.T) ** 3) @ _RGB_FROM_LMS.T
    linear = np.clip(linear, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    table: NDArray[np.uint8] = np.rint(srgb * 255).astype(np.uint8)
    table.flags.writeable = False
    return table


def colorize(heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H,W) in [0, 1] to (H,W,3) uint8 colours."""
    places = np.rint(np.clip(heat, 0, 1) * (ENTRIES - 1)).astype(np.intp)
    colors: NDArray[np.uint8] = np.take(color_table(), places, axis=0)
    return colors
