"""Shapes that belong to no class of the demo."""

from __future__ import annotations

import numpy as np

from vitcx.runtime.demo.parts import Part, Points, Shape, arc, band, polygon


def distractor(rng: np.random.Generator) -> Shape:
    """A shape of no class: one or two plain figures, some with a band or a hole."""
    parts = [Part(_plain_figure(rng))]
    extra = rng.random()
    if extra < 0.25:
        figure = _plain_figure(rng) * rng.uniform(0.35, 0.7) + rng.uniform(-0.5, 0.5, 2)
        parts.append(Part(figure, "accent"))
    elif extra < 0.40:
        parts.append(Part(parts[0].points * 0.55, "light"))
    elif extra < 0.50:
        parts.append(Part(parts[0].points * 0.5, "hole"))
    elif extra < 0.60:
        x, y = rng.uniform(-0.3, 0.3, 2)
        parts.append(Part(arc(x, y, 0.2, 0.2, n=14), "white"))
    return parts


def _plain_figure(rng: np.random.Generator) -> Points:
    """A polygon, a disc, a half-disc, a bar, a bent bar, a cross or a pebble in the unit frame."""
    kind = int(rng.integers(8))
    if kind == 0:
        sides = int(rng.integers(3, 7))
        return arc(0, 0, 0.95, 0.95, 0, 360, sides)
    if kind == 1:
        return arc(0, 0, 0.95, rng.uniform(0.5, 0.95))
    if kind == 2:
        return arc(0, -0.3, 0.95, rng.uniform(0.6, 0.95), 0, 180)
    if kind == 3:
        tall, slant = rng.uniform(0.1, 0.7), rng.uniform(-0.25, 0.25)
        return polygon((-0.7 + slant, -tall), (0.7 + slant, -tall), (0.7 - slant, tall),
                        (-0.7 - slant, tall))  # fmt: skip
    if kind == 4:
        bend = rng.uniform(-0.5, 0.5, 5)
        line = np.stack([np.linspace(-0.9, 0.9, 5), bend], axis=1)
        return band(line, rng.uniform(0.12, 0.3))
    if kind == 5:
        w = rng.uniform(0.15, 0.33)
        return polygon((-w, -0.9), (w, -0.9), (w, -w), (0.9, -w), (0.9, w), (w, w), (w, 0.9),
                        (-w, 0.9), (-w, w), (-0.9, w), (-0.9, -w), (-w, -w))  # fmt: skip
    if kind == 6:
        w = rng.uniform(0.25, 0.5)
        return polygon((-0.8, -0.8), (-0.8 + w, -0.8), (-0.8 + w, 0.8 - w), (0.8, 0.8 - w),
                        (0.8, 0.8), (-0.8, 0.8))  # fmt: skip
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    phase, depth = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.0, 0.16, 3)
    radius = 0.75 + sum(depth[k] * np.cos((k + 2) * angle + phase[k]) for k in range(3))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
