"""Scenes with known contents: drawn objects over clutter, with a mask and a box for each.

The embedded model is trained on these scenes and the tests and demos explain them, so that there
is a ground truth to hold an explanation against. Every scene is a pure function of its seed.
Training draws its seeds below `FIRST_FRESH_SEED`; a scene at or above it has never been seen by
the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from vitcx.runtime.demo.distractors import distractor
from vitcx.runtime.demo.parts import Shape, Tone
from vitcx.runtime.demo.shapes import CLASSES

from .backdrops import backdrop, vivid

#: Side of a scene in pixels.
SIZE = 96

#: Names of the classes, in the order of the model's outputs.
CLASS_NAMES: tuple[str, ...] = tuple(CLASSES)

#: Seeds from here on are kept out of training.
FIRST_FRESH_SEED = 1_000_000

#: Shapes are drawn this many times larger and averaged down, which smooths their edges.
_SUPERSAMPLING = 3

#: Radius of an object in pixels: alone in the scene, and as one of two.
_RADIUS_ALONE = (16.0, 23.0)
_RADIUS_OF_TWO = (16.0, 20.5)

Colour = tuple[int, int, int]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes
    ----------
    class_index : int
        Index into `CLASS_NAMES`.
    class_name : str
        The name at that index.
    mask : (SIZE, SIZE) bool
        True on the object's visible pixels.
    box : tuple of int
        ``(x0, y0, x1, y1)``: the smallest box around the mask, half-open.
    """

    class_index: int
    class_name: str
    mask: Mask
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Attributes
    ----------
    image : (SIZE, SIZE, 3) uint8
        The picture, RGB.
    objects : tuple of SceneObject
        Its objects, of classes that differ; empty for a scene of clutter alone.
    """

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]


def make_scene(seed: int, *, objects: int | None = None) -> Scene:
    """Draw the scene of a seed.

    Parameters
    ----------
    seed : int
        Non-negative; the same seed and number of objects give the same scene.
    objects : {0, 1, 2}, optional
        How many objects it has. Left out, the seed decides: one in about two thirds of the
        scenes, two in the others.

    Returns
    -------
    Scene
        The picture with the classes, masks and boxes of its objects.

    Raises
    ------
    ValueError
        If `objects` is none of 0, 1 and 2, or the seed is negative.
    """
    if objects not in (None, 0, 1, 2):
        raise ValueError(f"a scene has 0, 1 or 2 objects, got objects={objects!r}")
    if seed < 0:
        raise ValueError(f"a scene's seed is 0 or more, got {seed}")
    rng = np.random.default_rng(seed)
    drawn = int(rng.random() < 1 / 3) + 1
    count = drawn if objects is None else objects

    canvas = backdrop(rng, SIZE)
    for _ in range(int(rng.integers(2, 6))):
        radius = rng.uniform(4, 13)
        centre = rng.uniform(0, SIZE, 2)
        _place(canvas, rng, distractor(rng), centre, radius)
    _strokes(canvas, rng)

    classes = rng.choice(len(CLASS_NAMES), size=count, replace=False)
    masks: list[Mask] = []
    for (centre, radius), index in zip(_spots(rng, count), classes, strict=True):
        shape = CLASSES[CLASS_NAMES[index]](rng)
        mask = _place(canvas, rng, shape, centre, radius)
        masks = [*(m & ~mask for m in masks), mask]
    found = tuple(
        SceneObject(int(i), CLASS_NAMES[i], m, _box(m)) for i, m in zip(classes, masks, strict=True)
    )
    return Scene(_develop(canvas, rng), found)


def _spots(rng: np.random.Generator, count: int) -> list[tuple[NDArray[np.float64], float]]:
    """Centres and radii of the objects, inside the picture and apart from one another."""
    low, high = _RADIUS_ALONE if count == 1 else _RADIUS_OF_TWO
    while True:
        spots = []
        for radius in rng.uniform(low, high, count):
            margin = radius + 1
            spots.append((rng.uniform(margin, SIZE - margin, 2), float(radius)))
        if count < 2:
            return spots
        (a, ra), (b, rb) = spots
        if np.hypot(*(a - b)) >= 0.95 * (ra + rb):
            return spots


def _place(
    canvas: Image.Image,
    rng: np.random.Generator,
    shape: Shape,
    centre: NDArray[np.float64],
    radius: float,
) -> Mask:
    """Draw a shape, turned at random, and return the (SIZE, SIZE) mask of its pixels."""
    half = int(radius) + 3
    x, y = (int(v) for v in np.floor(centre))
    shift = centre - (x, y)
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    if rng.random() < 0.5:
        turn[0] *= -1
    stretch = rng.uniform(0.86, 1.0, 2)
    turn *= stretch[:, None] * radius * _SUPERSAMPLING

    colours = _colours(rng, canvas, x, y, half)
    outline = int(rng.choice([0, 0, 3, 5]))
    side = 2 * half * _SUPERSAMPLING
    edge = colours["black"] if rng.random() < 0.7 else colours["white"]
    paint = Image.new("RGB", (side, side), edge if outline else colours["base"])
    alpha = Image.new("L", (side, side))
    brush, cut = ImageDraw.Draw(paint), ImageDraw.Draw(alpha)
    middle = (half + shift) * _SUPERSAMPLING
    corners = [(part.tone, (part.points @ turn + middle).ravel().tolist()) for part in shape]
    for tone, points in corners:
        if tone == "hole":
            cut.polygon(points, fill=0)
        else:
            cut.polygon(points, fill=255)
            if outline:
                cut.line([*points, *points[:2]], fill=255, width=outline, joint="curve")
    for tone, points in corners:
        if tone != "hole":
            brush.polygon(points, fill=colours[tone])

    small = alpha.reduce(_SUPERSAMPLING)
    at = (x - half, y - half)
    if rng.random() < 0.6:
        shade = small.filter(ImageFilter.BoxBlur(1.5)).point(_SHADOW)
        canvas.paste((0, 0, 0), (at[0] + 1, at[1] + 2), shade)
    canvas.paste(paint.reduce(_SUPERSAMPLING), at, small)
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(small, at)
    return np.asarray(mask) >= 128


_SHADOW = [int(0.5 * v) for v in range(256)]


def _colours(
    rng: np.random.Generator, canvas: Image.Image, x: int, y: int, half: int
) -> dict[Tone, Colour]:
    """A palette for one shape, its main colour away from what lies behind it."""
    behind = np.asarray(
        canvas.resize((1, 1), Image.Resampling.BOX, _inside(x, y, half)), np.float64
    )[0, 0]
    for _ in range(12):
        base = vivid(rng)
        if np.abs(base - behind).sum() > 190:
            break
    accent = vivid(rng)
    light = base + 0.45 * (255 - base)
    return {
        "base": _rgb(base),
        "light": _rgb(light),
        "dark": _rgb(0.6 * base),
        "accent": _rgb(accent),
        "white": _rgb(235 + rng.uniform(0, 20, 3)),
        "black": _rgb(rng.uniform(5, 45, 3)),
    }


def _rgb(colour: NDArray[np.float64]) -> Colour:
    red, green, blue = (int(v) for v in np.clip(colour, 0, 255))
    return red, green, blue


def _inside(x: int, y: int, half: int) -> tuple[int, int, int, int]:
    """The part of a square about (x, y) that lies in the picture."""
    x, y = min(max(x, 0), SIZE - 1), min(max(y, 0), SIZE - 1)
    return max(x - half, 0), max(y - half, 0), min(x + half, SIZE), min(y + half, SIZE)


def _strokes(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Scatter a few twigs and threads over the clutter."""
    brush = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(0, 4))):
        start, step = rng.uniform(0, SIZE, 2), rng.uniform(-22, 22, 2)
        bends = start + np.cumsum(step + rng.uniform(-9, 9, (4, 2)), axis=0)
        colour = _rgb(vivid(rng))
        brush.line(
            bends.ravel().tolist(), fill=colour, width=int(rng.integers(1, 3)), joint="curve"
        )


def _develop(canvas: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn the canvas into the picture a camera might have taken: exposure, tint, blur, grain."""
    if rng.random() < 0.25:
        canvas = canvas.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.6)))
    picture = np.asarray(canvas, np.float32)
    gain = (rng.uniform(0.8, 1.15) * rng.uniform(0.93, 1.07, 3)).astype(np.float32)
    picture = (picture - 128.0) * gain + np.float32(128.0 + rng.uniform(-18, 18))
    picture += rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(0, 7))
    return np.clip(picture, 0, 255).astype(np.uint8)


def _box(mask: Mask) -> tuple[int, int, int, int]:
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
