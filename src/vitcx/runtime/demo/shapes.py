"""Outlines of the demo's classes, each a list of parts.

Proportions vary with the generator that is passed in, so that no two stars or fish are quite alike.
"""

from __future__ import annotations

import numpy as np

from vitcx.runtime.demo.parts import (
    Part,
    Shape,
    ShapeMaker,
    Tone,
    arc,
    band,
    mirrored,
    moved,
    polygon,
    upright,
)


def boat(rng: np.random.Generator) -> Shape:
    bow, deck = rng.uniform(0.82, 0.95), rng.uniform(0.28, 0.36)
    mast = rng.uniform(-0.12, 0.0)
    hull = polygon((-bow, deck), (bow, deck), (0.58, 0.86), (-0.55, 0.86))
    return [
        Part(moved(upright(0.07, -0.97, deck), mast, 0.0), "dark"),
        Part(polygon((mast + 0.1, -0.92), (0.84, deck - 0.12), (mast + 0.1, deck - 0.12)), "white"),
        Part(
            polygon((mast - 0.1, -0.7), (-0.76, deck - 0.12), (mast - 0.1, deck - 0.12)), "accent"
        ),
        Part(hull),
        Part(
            polygon((-bow, deck), (bow, deck), (bow - 0.1, deck + 0.16), (0.1 - bow, deck + 0.16)),
            "dark",
        ),
    ]


def arrow(rng: np.random.Generator) -> Shape:
    shaft, neck = rng.uniform(0.2, 0.3), rng.uniform(-0.05, 0.2)
    head = rng.uniform(0.62, 0.75)
    upper = polygon((-0.95, 0), (-0.95, -shaft), (neck, -shaft), (neck, -head), (0.98, 0))
    return [Part(upper, "light"), Part(upper * (1.0, -1.0), "base")]


def butterfly(rng: np.random.Generator) -> Shape:
    spread, low = rng.uniform(0.9, 1.0), rng.uniform(0.55, 0.7)
    upper = polygon(
        (0.05, -0.1), (0.2, -0.55), (0.55, -0.85), (0.85, -0.8), (0.97, -0.5), (0.85, -0.1),
        (0.55, 0.12), (0.05, 0.15),
    ) * (spread, 1.0)  # fmt: skip
    lower = polygon(
        (0.05, 0.05), (0.5, 0.12), (0.75, 0.35), (0.72, 0.68), (0.48, 0.86), (0.22, 0.7),
        (0.05, 0.3),
    ) * (spread * low / 0.62, 1.0)  # fmt: skip
    wing = [Part(upper), Part(lower, "dark")]
    spots = [
        Part(arc(0.62, -0.45, 0.19, 0.21), "accent"),
        Part(arc(0.45, 0.48, 0.14, 0.15), "light"),
    ]
    other = [Part(mirrored(p.points), p.tone) for p in (*wing, *spots)]
    return [*wing, *spots, *other, Part(arc(0, 0.02, 0.11, 0.62), "black")]


def crescent(rng: np.random.Generator) -> Shape:
    reach = rng.uniform(38, 52)
    tip = np.radians(reach)
    outer = arc(0, 0, 0.95, 0.95, reach, 360 - reach, 40)
    centre = rng.uniform(0.42, 0.5)
    radius = float(np.hypot(0.95 * np.cos(tip) - centre, 0.95 * np.sin(tip)))
    bite = float(np.degrees(np.arctan2(0.95 * np.sin(tip), 0.95 * np.cos(tip) - centre)))
    inner = arc(centre, 0, radius, radius, 360 - bite, bite, 32)
    body = np.concatenate([outer, inner])
    return [
        Part(moved(body, 0.25, 0.0)),
        Part(arc(-0.45, -0.22, 0.10, 0.10, n=12), "dark"),
        Part(arc(-0.38, 0.22, 0.13, 0.13, n=12), "dark"),
        Part(arc(-0.12, 0.58, 0.08, 0.08, n=12), "dark"),
    ]


def fish(rng: np.random.Generator) -> Shape:
    tall = rng.uniform(0.46, 0.58)
    top = arc(0.2, tall * 0.55, 0.86, tall * 1.55, 215, 325, 20)
    body = np.concatenate([top, (top * (1.0, -1.0))[::-1]])
    tail = polygon((-0.35, 0), (-0.98, -0.6), (-0.8, 0), (-0.98, 0.6))
    fin = polygon((-0.25, -0.4), (-0.05, -0.85), (0.4, -0.75), (0.45, -0.35))
    stripe = arc(0.02, 0, 0.09, tall * 0.82, n=16)
    return [
        Part(tail, "accent"),
        Part(fin, "accent"),
        Part(fin * (1.0, -0.8), "accent"),
        Part(body),
        Part(stripe, "light"),
        Part(moved(stripe, -0.28, 0.0), "light") if rng.random() < 0.6 else Part(stripe, "dark"),
        Part(arc(0.58, -0.12, 0.14, 0.14, n=14), "white"),
        Part(arc(0.61, -0.12, 0.07, 0.07, n=12), "black"),
    ]


def gear(rng: np.random.Generator) -> Shape:
    teeth = int(rng.integers(7, 11))
    root, hole = rng.uniform(0.66, 0.74), rng.uniform(0.22, 0.32)
    step = 2 * np.pi / teeth
    corner = np.array([-0.30, -0.18, 0.18, 0.30]) * step
    angle = (np.arange(teeth)[:, None] * step + corner).ravel()
    radius = np.tile([root, 0.98, 0.98, root], teeth)
    wheel = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return [
        Part(wheel),
        Part(arc(0, 0, hole + 0.2, hole + 0.2), "dark"),
        Part(arc(0, 0, hole, hole), "hole"),
    ]


def heart(rng: np.random.Generator) -> Shape:
    t = np.linspace(0, 2 * np.pi, 44, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    outline = np.stack([x, y], axis=1) / 17.0 * (1.0, rng.uniform(0.92, 1.08))
    return [Part(outline), Part(arc(-0.45, -0.34, 0.17, 0.2, n=16), "light")]


def key(rng: np.random.Generator) -> Shape:
    bow, shaft = rng.uniform(0.40, 0.47), rng.uniform(0.13, 0.16)
    x = -0.95 + bow
    bit = polygon((0.5, 0), (0.5, 0.46), (0.68, 0.46), (0.68, 0.30), (0.78, 0.30), (0.78, 0.50),
                   (0.96, 0.50), (0.96, 0))  # fmt: skip
    return [
        Part(polygon((x, -shaft), (0.97, -shaft), (0.97, shaft), (x, shaft))),
        Part(bit),
        Part(arc(x, 0, bow, bow)),
        Part(arc(x, 0, bow * 0.76, bow * 0.76), "light"),
        Part(arc(x, 0, bow * 0.48, bow * 0.48), "hole"),
        Part(polygon((-0.1, -0.2), (0.02, -0.2), (0.02, 0.2), (-0.1, 0.2)), "accent"),
    ]


def mushroom(rng: np.random.Generator) -> Shape:
    wide, stem = rng.uniform(0.85, 0.95), rng.uniform(0.2, 0.28)
    cap = np.concatenate([arc(0, 0.05, wide, 0.92, 180, 360), arc(0, 0.05, wide, 0.17, 0, 180, 14)])
    foot = polygon((-stem * 0.8, 0), (stem * 0.8, 0), (stem, 0.7), (stem * 1.25, 0.9),
                    (-stem * 1.25, 0.9), (-stem, 0.7))  # fmt: skip
    return [
        Part(foot, "light"),
        Part(cap),
        Part(arc(-0.42, -0.28, 0.17, 0.17, n=16), "white"),
        Part(arc(0.1, -0.52, 0.2, 0.18, n=16), "white"),
        Part(arc(0.5, -0.16, 0.15, 0.14, n=16), "white"),
    ]


def spiral(rng: np.random.Generator) -> Shape:
    turns = rng.uniform(1.7, 2.1)
    t = np.linspace(0.08, 1.0, 64)
    angle = 2 * np.pi * turns * t * rng.choice([-1.0, 1.0])
    line = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (0.86 * t[:, None])
    width = rng.uniform(0.23, 0.27) * np.clip((1.06 - t) * 6, 0.2, 1.0)
    return [Part(band(line, width)), Part(arc(0.0, 0.0, 0.15, 0.15, n=14))]


def star(rng: np.random.Generator) -> Shape:
    inner = rng.uniform(0.40, 0.50)
    angle = np.radians(np.arange(10) * 36.0 - 90)
    radius = np.tile([0.99, inner], 5)
    corner = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    facets = [
        Part(np.stack([np.zeros(2), corner[i], corner[i + 1]]), "light") for i in range(0, 10, 2)
    ]
    return [Part(corner), *facets]


def umbrella(rng: np.random.Generator) -> Shape:
    dip = rng.uniform(0.12, 0.18)
    rod = rng.uniform(0.075, 0.10)
    hook = band(arc(0.2, 0.66, 0.2, 0.24, 180, 20, 16), 0.17)
    edge = np.array([-0.96, -0.5, 0.0, 0.5, 0.96])
    parts = [
        Part(upright(rod, -0.95, 0.68), "dark"),
        Part(hook, "dark"),
    ]
    tones: tuple[Tone, ...] = ("base", "white", "base", "white")
    for left, right, tone in zip(edge[:-1], edge[1:], tones, strict=True):
        sweep = np.linspace(0.0, 1.0, 8)
        # Each panel runs from the ferrule down one rib, along its scallop and up the next rib.
        ribs = [
            np.stack([x * np.sin(sweep * np.pi / 2), 0.1 - 0.92 * np.cos(sweep * np.pi / 2)], 1)
            for x in (left, right)
        ]
        along = np.linspace(left, right, 8)
        scallop = np.stack([along, 0.1 - dip * np.sin(np.pi * sweep)], axis=1)
        parts.append(Part(np.concatenate([ribs[0], scallop, ribs[1][::-1]]), tone))
    return parts


#: The classes in the order of the model's outputs.
CLASSES: dict[str, ShapeMaker] = {
    "boat": boat,
    "arrow": arrow,
    "butterfly": butterfly,
    "crescent": crescent,
    "fish": fish,
    "gear": gear,
    "heart": heart,
    "key": key,
    "mushroom": mushroom,
    "spiral": spiral,
    "star": star,
    "umbrella": umbrella,
}
