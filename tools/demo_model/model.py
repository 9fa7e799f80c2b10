"""The embedded model's architecture: a small, plain Vision Transformer.

It is timm's own `VisionTransformer`, so the embedded model goes through the same export as any
other ViT. With patches of 8 pixels a scene is a 12×12 grid: fine enough for objects a few patches
across. 1.2 million parameters make 5 MB in float32.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from vitcx.export.timm_import import import_timm
from vitcx.runtime.demo.scenes import CLASS_NAMES, SIZE

PATCH = 8
GRID = SIZE // PATCH
WIDTH = 128
DEPTH = 6
HEADS = 4

#: Pixels in [0, 1] are shifted and divided by these before the model sees them.
MEAN = 0.5
STD = 0.5


def build() -> nn.Module:
    """The untrained model: images (B, 3, SIZE, SIZE) to logits (B, len(CLASS_NAMES))."""
    import_timm()
    from timm.models.vision_transformer import VisionTransformer

    model: nn.Module = VisionTransformer(
        img_size=SIZE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=len(CLASS_NAMES),
    )
    with torch.no_grad():
        # A grid that the model need not discover: learning starts sooner. It stays trainable.
        model.pos_embed[:, 1:] = 0.3 * _sine_grid(GRID, WIDTH)  # type: ignore[operator]
    model.pretrained_cfg = {  # type: ignore[assignment]
        "architecture": "vitcx_demo",
        "num_classes": len(CLASS_NAMES),
        "input_size": (3, SIZE, SIZE),
        "mean": (MEAN,) * 3,
        "std": (STD,) * 3,
        "crop_pct": 1.0,
        "crop_mode": "center",
        "interpolation": "bilinear",
    }
    return model


def load(weights: Path) -> nn.Module:
    """The trained model from a safetensors file, in evaluation mode."""
    from safetensors.torch import load_file

    model = build()
    model.load_state_dict(load_file(weights))
    return model.eval()


def _sine_grid(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of row and column at several wavelengths, (side·side, width)."""
    rate = torch.exp(-torch.arange(width // 4) / (width // 4) * torch.log(torch.tensor(100.0)))
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    phases = [axis.reshape(-1, 1) * rate for axis in (row, column)]
    return torch.cat([f(p) for p in phases for f in (torch.sin, torch.cos)], dim=1)
