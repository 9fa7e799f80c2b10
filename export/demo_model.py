"""The embedded model's architecture: a small, plain Vision Transformer.

It is timm's own `VisionTransformer`, so the embedded model goes through the same export as any
other ViT. With patches of 8 pixels a scene is a 12×12 grid: fine enough for objects a few patches
across. 1.2 million parameters make 5 MB in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

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
    vision_transformer = _timm_vision_transformer()
    model: nn.Module = vision_transformer.VisionTransformer(
        img_size=SIZE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=len(CLASS_NAMES),
    )
    with torch.no_grad():
        # A grid that the model need not discover: learning starts sooner. It stays trainable.
        model.pos_embed[:, 1:] = 0.3 * _sine_grid(GRID, WIDTH)  # type: ignore[index,operator]
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


#: Keeps the operators declared below alive for as long as the process.
_OPERATORS: list[torch.library.Library] = []


def _timm_vision_transformer() -> Any:
    """timm's ViT module, imported so that a torchvision built for another torch does no harm.

    Beside a CPU build of torch, torchvision's compiled part may not load, and its Python part then
    stops at the import because two operators are unknown. Declaring them is enough: timm's
    transformers use neither.
    """
    try:
        import timm.models.vision_transformer
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import sys

        for name in [n for n in sys.modules if n.split(".")[0] in ("timm", "torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        _OPERATORS.append(library)
        import timm.models.vision_transformer
    return timm.models.vision_transformer
