"""Models of timm's families with random weights, small enough to export in a few seconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vitcx.export.timm_import import import_timm

CLASSES = 7
_VIT = {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 64, "num_classes": CLASSES}
# 64 pixels are 16 patches, then 8 and 4: the window of 5 fits none, so each stage pads; every
# second block shifts.
_SWIN = {
    "depths": (1, 2, 1),
    "embed_dim": 16,
    "num_heads": (1, 2, 2),
    "window_size": 5,
    "img_size": 64,
    "num_classes": CLASSES,
}
# Name in the tests -> name in timm, arguments. Prefix tokens: 1, 2, 1, 5, 0 and none.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", _VIT),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", _VIT),
    "deit3": ("deit3_small_patch16_224", _VIT),
    "vit_registers": ("vit_small_patch14_reg4_dinov2", {**_VIT, "img_size": 56}),
    "vit_pooled": ("vit_medium_patch16_gap_240", _VIT),
    "swin": ("swin_tiny_patch4_window7_224", _SWIN),
}


def make(family: str, **changes: Any) -> nn.Module:
    """A model of `family` in evaluation mode, always with the same weights."""
    name, arguments = FAMILIES[family]
    torch.manual_seed(0)
    model: nn.Module = import_timm().create_model(name, **{**arguments, **changes})
    # timm starts heads and position biases near zero; the tests want every part to matter.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()
