"""What an explanation says beside its arrays, and how one of a difference is made of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitcx.runtime.errors import InputError


def summary_of(result: Any) -> dict[str, Any]:
    """What of an `Explanation` is not an array, ready for JSON."""
    targets = [
        {
            **_named(result, index, name),
            "mean_impact": float(result.impacts[i].mean()) if result.impacts.size else 0.0,
            "peak_xy": result.peak(i),
        }
        for i, (index, name) in enumerate(zip(result.targets, result.target_names, strict=True))
    ]
    against = {} if result.against is None else {"against": _named(result, *result.against)}
    return {
        "targets": targets,
        **against,
        "target_kind": result.target_kind,
        "masks": len(result.masks),
        "remarks": list(result.remarks),
        "seen_box": [round(float(edge), 3) for edge in result.box],
        "settings": dict(result.settings),
        "timings": {stage: round(seconds, 6) for stage, seconds in result.timings.items()},
        "provenance": dict(result.provenance),
    }


def _named(result: Any, index: int, name: str) -> dict[str, Any]:
    return {"index": index, "name": name, result.score_word: float(result.probabilities[index])}


def difference_of(result: Any, j: int) -> dict[str, Any]:
    """The fields of an `Explanation` of why each of the other targets and not target `j`.

    Raises
    ------
    InputError
        If there is no other target, or one is the same class.
    """
    index, name = result.targets[j], result.target_names[j]
    left = [i for i in range(len(result.targets)) if i != j % len(result.targets)]
    if not left or any(result.targets[i] == index for i in left):
        raise InputError(f"the target and the class against it are the same, {name!r}: give two")
    return {
        "saliency": np.stack([result.contrast(i, j) for i in left]),
        "impacts": np.asarray(result.impacts[left] - result.impacts[j], dtype=np.float32),
        "targets": tuple(result.targets[i] for i in left),
        "target_names": tuple(result.target_names[i] for i in left),
        "against": (index, name),
    }
