"""The precisions of a bundle: what turns the float32 graph into one, and how far it may be off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vitcx.export.graph.parity import FLOAT32, Tolerance
from vitcx.export.precision.half import write_half, write_rounded
from vitcx.export.precision.int8 import write_int8
from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import PRECISIONS


@dataclass(frozen=True)
class Precision:
    """One precision.

    Attributes
    ----------
    write : writes the float32 graph at the first path in this precision to the second; inputs and
        outputs stay float32. None: it is float32.
    write_stand_in : writes a graph to the second path that gives on a CPU what the one at the first
        gives where it can run; None: that one runs on a CPU.
    tolerance : of the comparison with torch in float32. It finds graphs that are broken; what a
        precision costs is measured in figures of its own.
    """

    write: Callable[[Path, Path], None] | None
    write_stand_in: Callable[[Path, Path], None] | None
    tolerance: Tolerance


# On DeiT-Tiny the embedding (rms) is off by 0.003 in fp16, 0.024 in bf16 and 0.1 in int8, the
# probabilities by 0.0001 to 0.03: on images that a model is not sure of, much more is possible.
_ROUGH = Tolerance(probabilities=0.5, embedding_rms=0.5, embedding_max=1.0)
_HALF = Tolerance(probabilities=0.1, embedding_rms=0.1, embedding_max=0.5)

AVAILABLE: Mapping[str, Precision] = {
    "fp32": Precision(None, None, FLOAT32),
    "fp16": Precision(partial(write_half, precision="fp16"), write_rounded, _HALF),
    "bf16": Precision(partial(write_half, precision="bf16"), write_rounded, _ROUGH),
    "int8": Precision(write_int8, None, _ROUGH),
}


def find_precision(name: str) -> Precision:
    """The precision called `name`; `InputError` if it is unknown."""
    if name in AVAILABLE:
        return AVAILABLE[name]
    raise InputError(f"precision is {name!r}, expected one of {', '.join(PRECISIONS)}")
