"""An explanation as JSON, PNG or NPZ."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.explanation import Explanation
from vitcx.runtime.pictures.colormap import color_table
from vitcx.serving.reading import Asked

JSON, PNG, NPZ = "application/json", "image/png", "application/x-npz"


def choose_kind(accept: str) -> str | None:
    """The first kind we can make among those accepted, by their weight; None if there is none."""
    wanted: list[tuple[float, int, str]] = []
    for place, part in enumerate(accept.split(",")):
        kind, *parameters = (piece.strip() for piece in part.lower().split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        if weight > 0:
            wanted.append((-weight, place, kind))
    for _, _, kind in sorted(wanted):
        if kind in ("", "*/*", "application/*"):
            return JSON
        if kind == "image/*":
            return PNG
        if kind in (JSON, PNG, NPZ):
            return kind
    return None


def render(result: Explanation, asked: Asked, kind: str) -> bytes:
    """The body of an answer. Takes milliseconds to a second: not for the event loop."""
    if kind == PNG:
        buffer = io.BytesIO()
        result.overlay(0, strength=asked.strength).save(buffer, "png")
        return buffer.getvalue()
    if kind == NPZ:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **result.arrays())  # type: ignore[arg-type]
        return buffer.getvalue()
    return json.dumps(as_json(result, asked), ensure_ascii=False).encode()


def as_json(result: Explanation, asked: Asked) -> dict[str, Any]:
    """Summary, the likeliest classes, impacts, and what else was asked for.

    Maps are base64 of raw little-endian values, row by row, with their shape beside them.
    """
    answer = result.summary()
    answer["picture"] = {"width": result.original.width, "height": result.original.height}
    # Names of classes are not in the explanation for classes that were not targets: indices do.
    order = np.argsort(-result.probabilities, kind="stable")[:5]
    answer["top_classes"] = [
        {"index": int(i), result.score_word: float(result.probabilities[i])} for i in order
    ]
    for i, target in enumerate(answer["targets"]):
        target["impacts"] = [round(float(value), 7) for value in result.impacts[i]]
    if "saliency" in asked.include:
        answer["saliency"] = _array(result.saliency.astype("<f4"), "float32")
    if "heatmap" in asked.include:
        heat = np.stack([result.heatmap(i) for i in range(len(result.targets))])
        answer["heatmap"] = _array(np.rint(heat * 255).astype(np.uint8), "uint8")
    if "masks" in asked.include:
        strongest = np.argsort(-result.impacts[0], kind="stable")[: asked.masks]
        masks = np.rint(np.clip(result.masks[strongest], 0, 1) * 255).astype(np.uint8)
        answer["strongest_masks"] = {
            "index": [int(k) for k in strongest],
            "impact": [round(float(result.impacts[0, k]), 7) for k in strongest],
            **_array(masks, "uint8"),
        }
    if "colors" in asked.include:
        answer["colors"] = _array(color_table(), "uint8")
    return answer


def _array(values: NDArray[Any], dtype: str) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
    return {"shape": list(values.shape), "dtype": dtype, "data": data}
