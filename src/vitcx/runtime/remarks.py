"""When a map says next to nothing, and the sentence that tells so.

A model that is sure of its answer gives almost the same score whatever a soft mask dims (the paper
calls it overdetermination, section 3.4). Stretched over all colours such a map looks like evidence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.presets import PRESETS

# Impacts whose range is within this share of the greatest magnitude tell masks apart by noise.
ALIKE_RTOL = 0.01


def scores_alike(impacts: NDArray[np.float32]) -> bool:
    """Whether the masks of one target, (K,) with K at least 2, all have about the same impact."""
    if impacts.size < 2:
        return False
    span = float(impacts.max()) - float(impacts.min())
    return span <= ALIKE_RTOL * float(np.abs(impacts).max())


def flat_remark(name: str, impacts: NDArray[np.float32], estimator: Any) -> str:
    """The sentence for a target whose masks score alike; names a way out if there is one."""
    least, greatest = float(impacts.min()), float(impacts.max())
    tried = estimator in {preset.settings.get("estimator") for preset in PRESETS.values()}
    advice = "" if tried else "; try the preset 'balanced'"
    return (
        f"all {impacts.size} masks score alike for {name} ({least:.4g} to {greatest:.4g}): "
        f"the map says next to nothing{advice}"
    )
