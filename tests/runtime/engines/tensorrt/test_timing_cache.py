"""Timings between builds: kept, refused, and never the cause of a failed build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vitcx.kernels.code_cache import read_code, write_code
from vitcx.runtime.engines.tensorrt.timing_cache import keep_timings, use_timings


class Timings:
    """TensorRT's `ITimingCache`."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content or b"measured now"


class Config:
    """Its `IBuilderConfig`: takes timings that begin with one of `taken`."""

    def __init__(self, *taken: bytes, made: bool = True) -> None:
        self.taken, self.made = taken, made
        self.used: list[Timings] = []

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Timings | None:
        made = self.made or not serialized_timing_cache
        return Timings(serialized_timing_cache) if made else None

    def set_timing_cache(self, cache: Timings, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.content not in self.taken:
            return False
        self.used.append(cache)
        return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "plans" / "gpu.timings"


def build(config: Any, path: Path) -> None:
    """As `build_plan` uses it."""
    timings = use_timings(config, path)
    if timings is not None:
        keep_timings(timings, path)


def test_timings_are_kept_and_come_back(path: Path) -> None:
    config = Config(b"", b"measured now")
    build(config, path)
    build(config, path)
    assert [timings.content for timings in config.used] == [b"", b"measured now"]
    assert read_code(path, "timing cache") == b"measured now"


@pytest.mark.parametrize("made", [True, False])
def test_refused_timings_are_replaced_and_not_written_back(
    made: bool, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By `create_timing_cache` or by `set_timing_cache`: TensorRT does either."""
    write_code(path, b"of another version", "timing cache")
    config = Config(b"", b"measured now", made=made)
    build(config, path)
    assert [timings.content for timings in config.used] == [b""]
    assert read_code(path, "timing cache") == b"measured now"
    assert "is refused: a new one takes its place" in caplog.text


def test_a_library_that_takes_no_timings_builds_without(path: Path) -> None:
    build(Config(), path)
    assert not path.exists()
