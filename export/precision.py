"""The precisions of a bundle: what turns the float32 graph into one, and how far it may be off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vitcx.export.parity import FLOAT32, Tolerance
from vitcx.runtime.bundle import PRECISIONS
from vitcx.runtime.errors import InputError


@dataclass(frozen=True)
class Precision:
    """One precision.

    Attributes
    ----------
    convert : rewrites the float32 ``model.onnx`` at a path in place; inputs and outputs stay
        float32. None leaves it as it is.
    tolerance : of the comparison with torch in float32.
    """

    convert: Callable[[Path], None] | None
    tolerance: Tolerance


AVAILABLE: Mapping[str, Precision] = {"fp32": Precision(convert=None, tolerance=FLOAT32)}


def find_precision(name: str) -> Precision:
    """The precision called `name`; `InputError` if it is unknown or not made yet."""
    if name in AVAILABLE:
        return AVAILABLE[name]
    if name in PRECISIONS:
        raise InputError(
            f"the precision {name} is planned, not available yet: use {', '.join(AVAILABLE)}"
        )
    raise InputError(f"precision is {name!r}, expected one of {', '.join(PRECISIONS)}")
