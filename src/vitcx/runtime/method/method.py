"""What an explanation method by masks is.

Where the masks come from, how a mask's impact is measured, what the map credits, and the settings
that mean something to it. Packing, blending, scoring and the engines are the same for all: a new
method is a file with a record, a line in `registry`, and its name in `settings.MethodName`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.mask_order import MaskOrder
from vitcx.runtime.method.estimators.estimator import Estimator
from vitcx.runtime.settings import MethodName, Settings

FloatArray = NDArray[np.float32]
Size = tuple[int, int]


@dataclass(frozen=True)
class Method:
    """An explanation method.

    Attributes
    ----------
    name : as the user gives it.
    summary : what the masks are, in one line.
    source : where it was published.
    masks : (embedding (D,h,w), settings, (H,W)) to the masks (K,h',w') float32, at any resolution.
    estimator : how the impact of a mask is measured, for these settings.
    uses : the settings that mean something to it, beside those of its estimator.
    order : what an engine that makes masks is to make of the embedding in place of `masks`, for
        these settings; None where the masks are not the model's.
    mask_shape : (K,h',w') of the masks for a picture of (H,W) pixels, told without making them;
        None where the masks are the model's.
    credits_hidden : whether a pixel is credited for being hidden, not shown.
    corrects_coverage : whether the map is divided by the coverage ρ, for these settings.
    """

    name: MethodName
    summary: str
    source: str
    masks: Callable[[FloatArray, Settings, Size], FloatArray]
    estimator: Callable[[Settings], Estimator]
    uses: frozenset[str]
    order: Callable[[Settings], MaskOrder | None] = lambda settings: None
    mask_shape: Callable[[Settings, Size], tuple[int, int, int]] | None = None
    credits_hidden: bool = False
    corrects_coverage: Callable[[Settings], bool] = lambda settings: settings.coverage_correction

    def mask_count(self, settings: Settings, size: Size) -> int | None:
        """How many masks there are, told without making them; None where they are the model's."""
        return None if self.mask_shape is None else self.mask_shape(settings, size)[0]

    def mask_bytes(self, settings: Settings, size: Size) -> int:
        """What the masks take, told without making them; 0 where they are the model's."""
        if self.mask_shape is None:
            return 0
        return math.prod(self.mask_shape(settings, size)) * np.dtype(np.float32).itemsize
