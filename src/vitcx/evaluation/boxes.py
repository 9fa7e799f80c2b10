"""Maps against drawn boxes: the pointing game (section 4.1) and localisation (appendix C).

Boxes are (x0, y0, x1, y1) in pixels, half-open; pixel (row, column) has its centre at
(column + 0.5, row + 0.5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, label

from vitcx.runtime.errors import InputError
from vitcx.sources.items import Box
from vitcx.sources.lists import BOX_COLUMNS, open_csv

FloatArray = NDArray[np.float32]

# Shares of the map's range at which it is cut; the published measure takes the best one
# (MaxBoxAcc: Choe et al., "Evaluating weakly supervised object localization methods right", 2020).
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))


@dataclass(frozen=True)
class Annotation:
    """What a CSV says of one picture: its class (None: unknown) and its boxes."""

    class_index: int | None = None
    boxes: tuple[Box, ...] = field(default_factory=tuple)


def read_annotations(path: Path) -> dict[str, Annotation]:
    """Annotations by file name, from a CSV with the columns ``file`` and ``class_index`` and/or
    ``x0, y0, x1, y1`` (pixels of the file; one line for each box).

    Raises
    ------
    InputError
        If the file cannot be read, lacks columns, or has a value that is no number.
    """
    found: dict[str, Annotation] = {}
    with open_csv(path) as (columns, lines):
        has_boxes = {*BOX_COLUMNS} <= {*columns}
        if "file" not in columns or not (has_boxes or "class_index" in columns):
            raise InputError(
                f"'{path}' has the columns {', '.join(sorted(columns)) or 'none'}: it needs 'file' "
                "and 'class_index' and/or 'x0, y0, x1, y1'"
            )
        for number, line in lines:
            before = found.get(line["file"], Annotation())
            try:
                index = int(line["class_index"]) if line.get("class_index") else before.class_index
                box = tuple(float(line[c]) for c in BOX_COLUMNS) if has_boxes else None
            except (TypeError, ValueError) as error:
                raise InputError(f"'{path}', line {number}: {error}") from None
            more = () if box is None else ((box[0], box[1], box[2], box[3]),)
            found[line["file"]] = Annotation(index, (*before.boxes, *more))
    return found


def boxes_in_frame(boxes: Iterable[Box], seen: Box, size: tuple[int, int]) -> list[Box]:
    """Boxes of the original picture in the model's frame; those outside the crop are left out.

    Parameters
    ----------
    boxes : in pixels of the original.
    seen : what the model sees of the original, in its pixels.
    size : (H, W) of the model's input.
    """
    left, top, right, bottom = seen
    across, down = size[1] / (right - left), size[0] / (bottom - top)
    result = []
    for x0, y0, x1, y1 in boxes:
        mapped = (
            max((x0 - left) * across, 0.0),
            max((y0 - top) * down, 0.0),
            min((x1 - left) * across, float(size[1])),
            min((y1 - top) * down, float(size[0])),
        )
        if mapped[0] < mapped[2] and mapped[1] < mapped[3]:
            result.append(mapped)
    return result


def box_mask(boxes: Iterable[Box], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H,W) True at pixels whose centre is in a box."""
    x = np.arange(size[1]) + 0.5
    y = np.arange(size[0]) + 0.5
    mask = np.zeros(size, dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
    return mask


def pointing_hit(saliency: FloatArray, truth: NDArray[np.bool_]) -> bool:
    """Whether the highest pixel (the first in raster order) is in the truth, (H,W) each."""
    return bool(truth.reshape(-1)[int(np.argmax(saliency))])


def centre_hit(truth: NDArray[np.bool_]) -> bool:
    """The pointing game of a map that always points at the middle."""
    return bool(truth[truth.shape[0] // 2, truth.shape[1] // 2])


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    if across <= 0 or down <= 0:
        return 0.0
    common = across * down
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def box_of_map(saliency: FloatArray, threshold: float) -> Box:
    """The box round the largest connected part (4 neighbours) of a map cut at a share of its range.

    A flat map gives the whole frame.
    """
    least, greatest = float(saliency.min()), float(saliency.max())
    parts, count = label(saliency >= least + threshold * (greatest - least))
    sizes = np.bincount(parts.reshape(-1), minlength=count + 1)
    rows, columns = find_objects(parts)[int(sizes[1:].argmax())]
    return float(columns.start), float(rows.start), float(columns.stop), float(rows.stop)


def best_overlaps(
    saliency: FloatArray, boxes: Sequence[Box], thresholds: Sequence[float] = THRESHOLDS
) -> list[float]:
    """For each threshold, the best IoU of the map's box with any of the true ones."""
    return [max(overlap(box_of_map(saliency, t), box) for box in boxes) for t in thresholds]


def localisation(
    overlaps: Sequence[Sequence[float]], thresholds: Sequence[float] = THRESHOLDS
) -> Mapping[str, float]:
    """Share of pictures with an IoU of at least 0.5, at the threshold that is best over them all.

    Parameters
    ----------
    overlaps : for each picture, what `best_overlaps` gave.
    """
    shares = (np.asarray(overlaps) >= 0.5).mean(axis=0)
    best = int(shares.argmax())
    return {"accuracy": float(shares[best]), "threshold": thresholds[best]}
