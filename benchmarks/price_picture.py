"""The picture of price against faithfulness: ours a line, the others points, labels apart."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from vitcx.runtime.digests import replacing

PRICES = {"passes": "passes of the model", "seconds": "seconds an explanation, one at a time"}
# Where a label may stand: to the right of its point first, then round it, then farther away.
_DIRECTIONS = ((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 0), (-1, 1), (-1, -1))
_DISTANCES = (5, 9, 15, 23, 33, 45)  # points
_SIZE = 7.5


@dataclass(frozen=True)
class Theme:
    """Colours of a page."""

    ground: str
    ink: str
    faint: str
    ours: str
    other: str


THEMES = {
    "light": Theme("#ffffff", "#1f2328", "#d0d7de", "#0550ae", "#8c5a00"),
    "dark": Theme("#0d1117", "#e6edf3", "#30363d", "#79c0ff", "#e3b341"),
}


def write_pictures(models: Mapping[str, Any], ours: Sequence[str], out: Path) -> list[str]:
    """A file for each canvas, price and theme; returns their names."""
    canvases = dict.fromkeys(
        canvas
        for found in models.values()
        for row in found["methods"].values()
        for canvas in row["srg"]
    )
    names = []
    for canvas in canvases:
        for price in PRICES:
            for theme in THEMES:
                names.append(f"price_faithfulness_{canvas}_{price}_{theme}.png")
                figure, _ = draw(models, ours, canvas, price, theme)
                with replacing(out / names[-1]) as path:
                    figure.savefig(path, format="png", dpi="figure")
    return names


def draw(
    models: Mapping[str, Any], ours: Sequence[str], canvas: str, price: str, theme: str = "light"
) -> tuple[Figure, list[Text]]:
    """A panel for each model, and the labels in it.

    Parameters
    ----------
    models : ``models`` of a report of `benchmarks.price_faithfulness`.
    ours : labels that a line joins in order of price.
    canvas, price : which figures; price is a key of `PRICES`. A method of no price is a level line.
    """
    colours = THEMES[theme]
    figure = Figure(figsize=(5.2 * len(models), 4.1), dpi=150, layout="constrained")
    figure.set_facecolor(colours.ground)
    places = figure.subplots(1, len(models), squeeze=False)[0]
    points: list[list[tuple[str, float, float]]] = []
    for place, (name, found) in zip(places, models.items(), strict=True):
        _dress(place, colours)
        place.set_title(name, color=colours.ink, fontsize=9)
        place.set_xlabel(PRICES[price], color=colours.ink, fontsize=8)
        points.append(_draw_points(place, found["methods"], ours, canvas, price, colours))
    places[0].set_ylabel(
        f"insertion minus deletion (SRG), canvas: {canvas}", color=colours.ink, fontsize=8
    )
    figure.draw_without_rendering()  # places the axes: labels are measured in them
    figure.set_layout_engine("none")
    labels = []
    for place, of_place in zip(places, points, strict=True):
        labels += _label(place, of_place, ours, colours)
    return figure, labels


def _dress(place: Axes, colours: Theme) -> None:
    place.set_facecolor(colours.ground)
    place.set_xscale("log")
    place.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    place.grid(True, color=colours.faint, lw=0.6)
    place.set_axisbelow(True)
    place.tick_params(colors=colours.ink, labelsize=7.5, which="both")
    for side, spine in place.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(colours.ink)


def _draw_points(
    place: Axes,
    methods: Mapping[str, Any],
    ours: Sequence[str],
    canvas: str,
    price: str,
    colours: Theme,
) -> list[tuple[str, float, float]]:
    """Draws them; returns label, price and SRG of each that has a price."""
    points = []
    for label, row in methods.items():
        if canvas not in row["srg"]:
            continue
        figure = row["srg"][canvas]
        if row["passes"] <= 0:  # no method: a level to be above
            place.axhline(figure["mean"], color=colours.faint, lw=1.2, ls="--", zorder=1)
            place.annotate(label, (0.99, figure["mean"]), xycoords=("axes fraction", "data"),
                           color=colours.ink, fontsize=7, ha="right", va="bottom")  # fmt: skip
            continue
        colour = colours.ours if label in ours else colours.other
        spread = [[figure["mean"] - figure["low"]], [figure["high"] - figure["mean"]]]
        place.errorbar(row[price], figure["mean"], yerr=spread, fmt="none", lw=0.8,
                       color=colour, alpha=0.45, zorder=2)  # fmt: skip
        place.plot(row[price], figure["mean"], "o", ms=4.5, color=colour, zorder=3)
        points.append((label, float(row[price]), float(figure["mean"])))
    line = sorted((x, y) for label, x, y in points if label in ours)
    if len(line) > 1:
        place.plot(*zip(*line, strict=True), color=colours.ours, lw=1.8, zorder=2)
    if points:
        prices = [x for _, x, _ in points]
        place.set_xlim(min(prices) / 1.6, max(prices) * 3.2)  # room for a label on the right
    place.margins(y=0.12)
    return points


def _label(
    place: Axes, points: Sequence[tuple[str, float, float]], ours: Sequence[str], colours: Theme
) -> list[Text]:
    """Each label where it covers no point, no line and no other label."""
    spots = {label: place.transData.transform((x, y)) for label, x, y in points}
    pixels = place.figure.dpi / 72
    taken = [text.get_window_extent() for text in place.texts]
    radius = 3 * pixels
    taken += [
        Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius) for x, y in spots.values()
    ]
    for bars in place.containers:
        lines: Any = bars
        for path in lines.lines[2][0].get_segments():
            (x, low), (_, high) = place.transData.transform(path)
            taken.append(Bbox.from_extents(x - 0.5, low, x + 0.5, high))
    joined = sorted(tuple(spots[label]) for label in spots if label in ours)
    for (x0, y0), (x1, y1) in itertools.pairwise(joined):
        taken += [
            Bbox.from_bounds(x0 + share * (x1 - x0), y0 + share * (y1 - y0), 1, 1)
            for share in np.linspace(0, 1, 40)
        ]
    texts = []
    for label, _, _ in sorted(points, key=lambda point: -point[2]):
        own = label in ours
        text = place.text(0, 0, label, fontsize=_SIZE, color=colours.ours if own else colours.ink,
                          weight="bold" if own else "normal", transform=None)  # fmt: skip
        size = text.get_window_extent()
        box, far = _free_box(spots[label], size.width, size.height, taken, place.bbox, pixels)
        text.set_position((box.x0, box.y0))
        taken.append(box)
        if far:
            corner = np.clip(spots[label], box.min, box.max)
            ends = place.transData.inverted().transform([spots[label], corner])
            place.plot(*ends.T, color=colours.ink, lw=0.5, alpha=0.6, zorder=1)
        texts.append(text)
    return texts


def _free_box(
    spot: Any, width: float, height: float, taken: Sequence[Bbox], frame: Bbox, pixels: float
) -> tuple[Bbox, bool]:
    """The nearest free place beside a spot, in pixels, and whether it needs a leader."""
    best: tuple[float, Bbox, bool] | None = None
    for distance in _DISTANCES:
        for across, up in _DIRECTIONS:
            gap = distance * pixels
            x = spot[0] + across * gap - (width if across < 0 else width / 2 if across == 0 else 0)
            y = spot[1] + up * gap - (height if up < 0 else height / 2 if up == 0 else 0)
            box = Bbox.from_bounds(x, y, width, height)
            outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1
                           and frame.y0 <= box.y0 and box.y1 <= frame.y1)  # fmt: skip
            covered = sum(_area(box, other) for other in taken)
            if not outside and covered == 0:
                return box, distance > _DISTANCES[1]
            cost = covered + 1e6 * outside
            if best is None or cost < best[0]:
                best = (cost, box, True)
    assert best is not None
    return best[1], best[2]


def _area(a: Bbox, b: Bbox) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0
