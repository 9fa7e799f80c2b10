"""Settings of TensorRT's builder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vitcx.runtime.errors import InputError


@dataclass(frozen=True)
class BuildOptions:
    """Settings of the builder.

    Attributes
    ----------
    workspace_bytes : most device memory that one kernel may take for itself; None leaves
        TensorRT's own limit.
    tf32 : whether float32 products may be rounded to TF32's 10 bits. Off: vitcx claims parity.
    optimization_level : 0 to 5, TensorRT's; None leaves its own.
    timing_cache : file of kernel timings kept between builds; None keeps none. TensorRT-RTX times
        nothing when it builds.
    compute_capabilities : such as ("8.9", "12.0"), to build ahead of time on any machine, even one
        without a GPU (TensorRT-RTX alone). Empty: for this machine's GPU.
    """

    workspace_bytes: int | None = None
    tf32: bool = False
    optimization_level: int | None = None
    timing_cache: Path | None = None
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", capability):
                raise InputError(
                    f"the compute capability is {capability!r}, expected one such as 8.9"
                )
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise InputError(f"workspace_bytes is {self.workspace_bytes}: give at least 1, or None")
        if self.optimization_level not in (None, 0, 1, 2, 3, 4, 5):
            raise InputError(f"optimization_level is {self.optimization_level}, not in 0 to 5")
