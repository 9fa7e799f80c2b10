"""Timings of kernels, kept from one build of TensorRT to the next. TensorRT-RTX has none."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from vitcx.kernels.code_cache import read_code, write_code

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger("vitcx")

_WHAT = "timing cache"


def use_timings(config: trt.IBuilderConfig, path: Path) -> trt.ITimingCache | None:
    """The timings in a file, set for the build that `config` is of; empty ones where it has none.

    Timings that the library refuses, as those of another version or GPU, are left out, so that
    `keep_timings` writes new ones in their place. None where it takes not even empty ones.
    """
    kept = read_code(path, _WHAT)
    if kept is not None:
        timings = config.create_timing_cache(kept)
        if _is_taken(config, timings):
            return timings
        log.warning("the timing cache %s is refused: a new one takes its place", path)
    timings = config.create_timing_cache(b"")
    return timings if _is_taken(config, timings) else None


def _is_taken(config: trt.IBuilderConfig, timings: trt.ITimingCache | None) -> bool:
    return timings is not None and bool(config.set_timing_cache(timings, ignore_mismatch=False))


def keep_timings(timings: trt.ITimingCache, path: Path) -> None:
    """Write what there is after a build."""
    write_code(path, bytes(memoryview(timings.serialize())), _WHAT)
