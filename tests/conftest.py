"""What the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real weights and photographs beside the checkout; skips where it is absent."""
    if not (SHARED / "models").is_dir():
        pytest.skip("no real weights and photographs beside the checkout (../shared)")
    return SHARED
