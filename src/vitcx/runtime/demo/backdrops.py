"""Clutter to put objects on: noise at several scales seen through a palette, bands, pebbles."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Field = NDArray[np.float32]


def vivid(rng: np.random.Generator) -> NDArray[np.float64]:
    """A random colour, (3,) in [0, 255]; any hue, mostly saturated."""
    saturation, value = rng.uniform(0.25, 1.0), rng.uniform(0.35, 1.0)
    return np.asarray(colorsys.hsv_to_rgb(rng.random(), saturation, value)) * 255


def backdrop(rng: np.random.Generator, size: int) -> Image.Image:
    """A picture without objects.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where every choice comes from.
    size : int
        Side of the picture in pixels.

    Returns
    -------
    PIL.Image.Image
        RGB, `size` by `size`.
    """
    banded = rng.random() < 0.25
    # Bands fold the noise over: with its finest scales they would turn into a glaring maze.
    octaves, falloff = (3, 0.35) if banded else (5, rng.uniform(0.45, 0.7))
    ground = _noise(rng, size, octaves=octaves, falloff=falloff)
    ground += _ramp(rng, size) * np.float32(rng.uniform(0, 1.2))
    if banded:
        ground = np.sin(ground * np.float32(rng.uniform(3, 9)))
    ground -= ground.min()
    ground /= max(float(ground.max()), 1e-6)
    pixels = _palette(rng)[(ground * 255).astype(np.uint8)]
    light = 1 + np.float32(0.3) * _noise(rng, size, octaves=3, falloff=0.8)
    pixels = np.clip(pixels * light[..., None], 0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels)
    if rng.random() < 0.5:
        _pebbles(rng, picture)
    return picture


def _noise(rng: np.random.Generator, size: int, *, octaves: int, falloff: float) -> Field:
    """Smooth noise about 0, (size, size): grids of rising resolution, each weighing less."""
    # Unequal sides of the coarsest grid draw the noise out into grass, clouds or grain.
    rows, columns = (int(n) for n in rng.integers(2, 6, 2))
    total = np.zeros((size, size), np.float32)
    weight = 1.0
    for _ in range(octaves):
        grid = rng.uniform(-weight, weight, (rows, columns)).astype(np.float32)
        total += np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))
        rows, columns, weight = min(2 * rows, size), min(2 * columns, size), weight * falloff
    return total


def _ramp(rng: np.random.Generator, size: int) -> Field:
    """A slope across the picture in a random direction, (size, size) within about ±1."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    slope: Field = np.float32(np.cos(angle)) * axis + np.float32(np.sin(angle)) * axis[:, None]
    return slope


def _palette(rng: np.random.Generator) -> NDArray[np.float32]:
    """256 colours along a path between four of nearby hue, (256, 3) in [0, 255]."""
    hue, spread = rng.random(), rng.uniform(0.03, 0.3)
    values = np.sort(rng.uniform(0.15, 0.95, 4))
    stops = [
        colorsys.hsv_to_rgb((hue + rng.uniform(-spread, spread)) % 1, rng.uniform(0.05, 0.65), v)
        for v in values
    ]
    at = np.linspace(0, 1, 4)
    channels = [np.interp(np.linspace(0, 1, 256), at, [s[c] for s in stops]) for c in range(3)]
    return (np.stack(channels, axis=1) * 255).astype(np.float32)


def _pebbles(rng: np.random.Generator, picture: Image.Image) -> None:
    """Strew small ellipses in one family of colours, denser or sparser from picture to picture."""
    brush = ImageDraw.Draw(picture)
    tone = vivid(rng)
    for _ in range(int(rng.integers(5, 40))):
        x, y = rng.uniform(0, picture.width, 2)
        a, b = rng.uniform(0.7, 3.5, 2)
        shade = np.clip(tone * rng.uniform(0.5, 1.3), 0, 255).astype(int)
        brush.ellipse((x - a, y - b, x + a, y + b), fill=tuple(shade.tolist()))
