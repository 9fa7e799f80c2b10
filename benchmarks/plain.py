"""The paper's procedure written in PyTorch: the plain way, and cleaned up and batched.

Both do what the published method does: masks at pixel resolution, agglomerative clustering with
complete linkage, cluster sums min-max normalised, eq. 2 and eq. 5. `loop` scores a mask at a time;
`batched` makes all masked pictures of a batch at once and can run compiled or in half precision.
They run where the model's weights are, in their element type.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor, nn

from benchmarks.models import site_of

FloatArray = NDArray[np.float32]
NOISE_STD = 0.1


def embedding_of(model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (C,) and embedding (1,D,h,w)."""
    site = site_of(model)
    kept: list[Tensor] = []
    module = model.get_submodule(site.path)
    handle = module.register_forward_hook(lambda _m, _i, out: kept.append(out))
    try:
        probabilities = _probabilities(model, image[None])[0]
    finally:
        handle.remove()
    return probabilities, site.arrange(kept[0]).float()


def _probabilities(
    model: nn.Module, images: Tensor, forward: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """(N,C) float32; `forward` instead of the model itself."""
    weights = next(model.parameters()).dtype
    called = model if forward is None else forward
    return called(images.to(weights)).float().softmax(dim=1)


def _on_device(model: nn.Module, image: FloatArray) -> Tensor:
    return torch.from_numpy(image).to(next(model.parameters()).device)


def pixel_masks(embedding: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """(K,H,W) cluster masks in [0, 1]."""
    maps = nn.functional.interpolate(embedding, size=size, mode="bilinear", align_corners=False)
    masks = _normalised(maps[0].flatten(1))
    unit = masks / masks.norm(dim=1, keepdim=True)
    distance = (1 - unit @ unit.T).clamp(min=0).cpu().numpy().astype(np.float64)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), method="complete")
    labels = torch.from_numpy(fcluster(tree, threshold, "distance")).long() - 1
    labels = labels.to(masks.device)
    empty = torch.zeros(int(labels.max()) + 1, masks.shape[1], device=masks.device)
    sums = empty.index_add_(0, labels, masks)
    return _normalised(sums).reshape(-1, *size)


def _normalised(rows: Tensor) -> Tensor:
    least, greatest = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
    return (rows - least) / (greatest - least)


def _map(masks: Tensor, impacts: Tensor) -> FloatArray:
    total = (impacts[:, None, None] * masks).sum(dim=0)
    return (total / masks.sum(dim=0)).cpu().numpy()


@torch.no_grad()
def loop(
    model: nn.Module,
    image: FloatArray,
    target: int,
    *,
    threshold: float = 0.1,
    noise_std: float = NOISE_STD,
) -> FloatArray:
    """One mask at a time."""
    x = _on_device(model, image)
    probabilities, embedding = embedding_of(model, x)
    masks = pixel_masks(embedding, image.shape[1:], threshold)
    impacts = []
    for mask in masks:
        noise = (1 - mask) * torch.randn_like(x) * noise_std
        masked = _probabilities(model, (x * mask + noise)[None])[0, target]
        noisy = _probabilities(model, (x + noise)[None])[0, target]
        impacts.append(masked + probabilities[target] - noisy)
    return _map(masks, torch.stack(impacts))


@torch.no_grad()
def batched(
    model: nn.Module,
    image: FloatArray,
    target: int,
    *,
    threshold: float = 0.1,
    noise_std: float = NOISE_STD,
    batch: int = 16,
    forward: Callable[[Tensor], Tensor] | None = None,
    half: bool = False,
) -> FloatArray:
    """All rows in batches; `forward` is a compiled model, `half` runs a float32 one in bfloat16."""
    x = _on_device(model, image)
    probabilities, embedding = embedding_of(model, x)
    masks = pixel_masks(embedding, image.shape[1:], threshold)
    scores = []
    for part in torch.split(masks, batch // 2):
        pixels = part[:, None]
        normals = torch.randn(len(part), *x.shape, device=x.device)
        noise = (1 - pixels) * normals * noise_std
        rows = torch.cat([x * pixels + noise, x + noise])
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half):
            answers = _probabilities(model, rows, forward)[:, target]
        scores.append(answers[: len(part)] + probabilities[target] - answers[len(part) :])
    return _map(masks, torch.cat(scores))
