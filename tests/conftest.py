"""What the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

try:
    import hypothesis
except ImportError:  # the tests that draw examples skip, or fail, on their own
    pass
else:
    # A test is not wrong because the machine was busy.
    hypothesis.settings.register_profile("vitcx", deadline=None)
    hypothesis.settings.load_profile("vitcx")

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real weights and photographs beside the checkout; skips where it is absent."""
    if not (SHARED / "models").is_dir():
        pytest.skip("no real weights and photographs beside the checkout (../shared)")
    return SHARED


# What runs other programs or exports models again and again: `make test-slow`.
SLOW = ("benchmarks", "export/precision", "export/test_tensorrt.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of these folders and files as slow."""
    root = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(root):
            place = item.path.relative_to(root).as_posix()
            if place.startswith(SLOW):
                item.add_marker(pytest.mark.slow)
