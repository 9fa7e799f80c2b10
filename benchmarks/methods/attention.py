"""Methods that combine attention weights of the [CLS] token: Rollout, CGW2, TAM.

Maps are at patch resolution, upsampled bilinearly. Shapes: blocks L, heads h, tokens N = prefix +
patches; token 0 is [CLS].
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.methods import NotApplicable
from vitcx.kernels.host.upsampling import upsample

FloatArray = NDArray[np.float32]

# TAM's settings as its authors publish them.
TAM_FIRST_BLOCK = 4
TAM_STEPS = 20


@contextlib.contextmanager
def attention_maps(model: Any) -> Iterator[list[Tensor]]:
    """While open, each forward pass fills the list with every block's attention (B,h,N,N).

    They stay in the graph, so gradients can be taken of them. Fused attention, which never makes
    them, is switched off for the while.
    """
    blocks = getattr(model, "blocks", None)
    if blocks is None or not hasattr(model, "cls_token") or model.cls_token is None:
        raise NotApplicable(f"{type(model).__name__} has no [CLS] token whose attention could tell")
    maps: list[Tensor] = []
    attentions = [block.attn for block in blocks]
    fused = [attention.fused_attn for attention in attentions]
    hooks = [
        attention.attn_drop.register_forward_hook(lambda _m, _i, out: maps.append(out))
        for attention in attentions
    ]
    first = attentions[0].register_forward_pre_hook(lambda _m, _i: maps.clear())
    try:
        for attention in attentions:
            attention.fused_attn = False
        yield maps
    finally:
        for attention, was in zip(attentions, fused, strict=True):
            attention.fused_attn = was
        for hook in (*hooks, first):
            hook.remove()


def to_map(model: Any, patches: Tensor, image: FloatArray) -> FloatArray:
    """(prefix + patches,) values of tokens to an (H,W) map."""
    prefix = int(getattr(model, "num_prefix_tokens", 1))
    height, width = model.patch_embed.grid_size
    low = patches[prefix:].reshape(height, width).detach().float().numpy()
    return upsample(np.ascontiguousarray(low, dtype=np.float32), image.shape[1:])


def rollout_matrix(attentions: list[Tensor]) -> Tensor:
    """(N,N) product of (mean over heads + identity) / 2, last block leftmost; rows sum to 1.

    Source: Abnar and Zuidema, "Quantifying attention flow in transformers" (ACL 2020).
    """
    total = torch.eye(attentions[0].shape[-1], dtype=attentions[0].dtype)
    for attention in attentions:
        mean = attention[0].mean(dim=0)
        total = (mean + torch.eye(len(mean), dtype=mean.dtype)) / 2 @ total
    return total


def rollout(model: Any, image: FloatArray, target: int) -> FloatArray:
    """Attention rollout; the same for every class."""
    with attention_maps(model) as maps, torch.no_grad():
        model(torch.from_numpy(image)[None])
        return to_map(model, rollout_matrix(maps)[0], image)


def cgw2(model: Any, image: FloatArray, target: int) -> FloatArray:
    """Chefer, Gur, Wolf, "Generic attention-model explainability" (ICCV 2021), for self-attention.

    ``R ← R + mean_h (∇A ⊙ A)⁺ R``, from the identity, first block to last; row of [CLS].
    """
    with attention_maps(model) as maps:
        logits = model(torch.from_numpy(image)[None])
        slopes = torch.autograd.grad(logits[0, target], maps)
        relevance = torch.eye(maps[0].shape[-1])
        for attention, slope in zip(maps, slopes, strict=True):
            step = (slope * attention)[0].clamp(min=0).mean(dim=0).detach()
            relevance = relevance + step @ relevance
    return to_map(model, relevance[0], image)


def tam(model: Any, image: FloatArray, target: int) -> FloatArray:
    """Transition attention maps: Yuan et al., "Explaining information flow inside vision
    transformers using Markov chain" (XAI4Debugging 2021).

    The state is [CLS]'s attention in the last block, carried down through the blocks with their
    residual connections; it is weighted by the positive part of the probability's gradient for that
    attention, averaged over pictures from black (0) to the whole.
    """
    with attention_maps(model) as maps:
        with torch.no_grad():
            model(torch.from_numpy(image)[None])
        state = maps[-1][0, :, 0].mean(dim=0)
        first = min(TAM_FIRST_BLOCK, len(maps) - 1)
        for attention in reversed(maps[first:-1]):
            state = state + state @ attention[0].mean(dim=0)
        total = torch.zeros_like(maps[-1])
        for alpha in np.linspace(0, 1, TAM_STEPS, dtype=np.float32):
            probabilities = model(torch.from_numpy(image * alpha)[None]).softmax(dim=1)
            total += torch.autograd.grad(probabilities[0, target], maps[-1])[0]
        weight = (total / TAM_STEPS).clamp(min=0)[0, :, 0].mean(dim=0)
    return to_map(model, state * weight, image)
