"""A small random ViT, and a picture for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="package")
def vit() -> Any:
    """In evaluation mode; tests leave its weights as they are."""
    torch = pytest.importorskip("torch")
    timm_import = pytest.importorskip("vitcx.export.timm_import")
    try:
        timm = timm_import.import_timm()
    except ModuleNotFoundError:
        pytest.skip("timm is not installed")
    torch.manual_seed(0)
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=5, num_heads=3, num_classes=7
    ).eval()


@pytest.fixture(scope="package")
def image() -> np.ndarray:
    """(3,32,32) float32."""
    return np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
