"""Parts of drawn shapes: polygons in a unit frame, and what they are made of.

x is to the right, y down, and everything lies within about 1 of the origin. Nothing here knows
about pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Tone = Literal["base", "light", "dark", "accent", "white", "black", "hole"]
Shape = list["Part"]
ShapeMaker = Callable[[np.random.Generator], Shape]


@dataclass(frozen=True)
class Part:
    """One filled polygon of a shape.

    Attributes
    ----------
    points : (N, 2) float64
        Corners, x and y in the unit frame.
    tone : str
        Which of the object's colours fills it; ``"hole"`` cuts through the parts drawn before.
    """

    points: Points
    tone: Tone = "base"


def polygon(*corners: tuple[float, float]) -> Points:
    return np.asarray(corners, dtype=np.float64)


def arc(
    x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0, n: int = 28
) -> Points:
    """Points of an elliptic arc; angles in degrees, clockwise on screen since y points down."""
    angle = np.radians(np.linspace(start, stop, n, endpoint=abs(stop - start) < 360))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def band(line: Points, width: float | NDArray[np.float64]) -> Points:
    """Outline of a stroke of the given width along a polyline."""
    along: Points = np.asarray(np.gradient(line, axis=0))
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    side = np.stack([-along[:, 1], along[:, 0]], axis=1) * np.reshape(width, (-1, 1)) / 2
    return np.concatenate([line + side, (line - side)[::-1]])


def mirrored(points: Points) -> Points:
    mirrored: Points = points * np.array([-1.0, 1.0])
    return mirrored


def moved(points: Points, x: float, y: float) -> Points:
    moved: Points = points + np.array([x, y])
    return moved


def upright(half_width: float, top: float, bottom: float) -> Points:
    """A rectangle that straddles the vertical axis."""
    w = half_width
    return polygon((-w, top), (w, top), (w, bottom), (-w, bottom))
