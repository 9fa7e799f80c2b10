"""An explanation as JSON, PNG or NPZ."""

from __future__ import annotations

import base64
import io
import json
import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.explanation import Explanation
from vitcx.runtime.manifest import Manifest
from vitcx.runtime.method.registry import METHODS
from vitcx.runtime.pictures.colormap import color_table
from vitcx.runtime.pictures.overlay import drawing
from vitcx.runtime.targets import count_targets
from vitcx.serving.limits import Limits, Refused
from vitcx.serving.reading import Asked, check_answer, most_masks

# Of the JSON: what is neither of a target nor of a mask; a target without its impacts; an impact.
_SUMMARY_BYTES, _TARGET_BYTES, _IMPACT_BYTES = 16 << 10, 2 << 10, 16
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


def answer_bytes(asked: Asked, kind: str, manifest: Manifest) -> int:
    """The most bytes that the answer can have, known before any work is done.

    An overlay has the picture's size, which is not known yet: `render` looks at it.
    """
    if kind == PNG:
        return 0
    targets = count_targets(asked.request.targets)
    masks = most_masks(asked.request.settings, manifest)
    pixels = math.prod(manifest.input_size)
    settings = asked.request.settings
    made = METHODS[settings.method].mask_bytes(settings, manifest.input_size)
    mask_size = made // 4 // masks if made else math.prod(manifest.grid)
    if kind == NPZ:
        # Nothing is larger in the archive than it is in memory, but for a hundredth.
        numbers = targets * (pixels + masks) + masks * mask_size + pixels + manifest.num_classes
        return 4 * numbers + numbers // 25 + _SUMMARY_BYTES
    a_byte = 4 / 3  # as base64
    size = targets * (_TARGET_BYTES + _IMPACT_BYTES * masks)
    size += int(a_byte * targets * pixels * 4) * ("saliency" in asked.include)
    size += int(a_byte * targets * pixels) * ("heatmap" in asked.include)
    size += int(a_byte * asked.masks * mask_size) * ("masks" in asked.include)
    return size + _SUMMARY_BYTES


def render(
    result: Explanation, asked: Asked, kind: str, limits: Limits, deadline: float = math.inf
) -> bytes:
    """The body of an answer. Takes milliseconds to a second: not for the event loop.

    Parameters
    ----------
    deadline : on the monotonic clock; an overlay that has not had its turn by then is not drawn.

    Raises
    ------
    InputError
        If an overlay would be larger than an answer may be.
    Refused
        504 past the deadline.
    """
    if kind == PNG:
        check_answer(3 * result.original.width * result.original.height, limits)
        buffer = io.BytesIO()
        with drawing():
            if time.monotonic() > deadline:
                raise Refused(504, f"not done within {limits.deadline:g} s")
            _asked_for(result, asked).overlay(0, strength=asked.strength).save(buffer, "png")
        return buffer.getvalue()
    if kind == NPZ:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **_asked_for(result, asked).arrays())  # type: ignore[arg-type]
        return buffer.getvalue()
    return json.dumps(as_json(result, asked), ensure_ascii=False).encode()


def _asked_for(result: Explanation, asked: Asked) -> Explanation:
    """The explanation, or its difference to the last target if that is what was asked."""
    return result.minus() if asked.against else result


def as_json(result: Explanation, asked: Asked) -> dict[str, Any]:
    """Summary, the likeliest classes, impacts, and what else was asked for.

    Maps are base64 of raw little-endian values, row by row, with their shape beside them.
    """
    result = _asked_for(result, asked)
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
