"""Layer-wise relevance propagation for ViTs, and the methods on it: Partial LRP and CGW1.

Source: Chefer, Gur, Wolf, "Transformer interpretability beyond attention visualization" (CVPR
2021), sections 3.1 and 3.2. Relevance starts as 1 at the target's logit and goes back through:

- linear layers: the z⁺ rule, ``R_j = Σ_i (x_j w_ij)⁺ / Σ_k (x_k w_ik)⁺ R_i``; biases get none;
- sums of two branches: in proportion to each branch's share, then scaled so that the two branches'
  totals are in proportion to their magnitudes and add up to what came (their eq. 9 and 10);
- products of two activations (attention times values, queries times keys): half to each factor;
- normalisation, GELU and softmax: unchanged.

So the total is 1 at every depth (conservation; tested). Computed in float64 for one picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.methods import NotApplicable
from benchmarks.methods.attention import attention_maps, to_map

FloatArray = NDArray[np.float32]
_TINY = 1e-12


@dataclass(frozen=True)
class Relevance:
    """Relevance of each block's attention, (h,N,N), and of the tokens entering it, (N,D)."""

    attentions: list[Tensor]
    tokens: list[Tensor]


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 where the denominator is: nothing flowed there."""
    small = denominator.abs() < _TINY
    return torch.where(small, 0.0, numerator / torch.where(small, 1.0, denominator))


def linear_rule(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """z⁺ rule: x (N,in), weight (out,in), relevance (N,out) to (N,in)."""
    up, down = x.clamp(min=0), x.clamp(max=0)
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    share = _divide(relevance, up @ positive.T + down @ negative.T)
    return up * (share @ positive) + down * (share @ negative)


def sum_rule(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``a + b``: relevance for each, same shapes, adding up to what came in all."""
    share = _divide(relevance, a + b)
    to_a, to_b = a * share, b * share
    total, of_a, of_b = relevance.sum(), to_a.sum(), to_b.sum()
    weight_a = of_a.abs() / (of_a.abs() + of_b.abs()).clamp(min=_TINY)
    return (
        _divide(to_a * weight_a * total, of_a),
        _divide(to_b * (1 - weight_a) * total, of_b),
    )


def product_rule(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Of the matrix product ``a @ b`` (batched): half of the relevance for each factor."""
    share = _divide(relevance, a @ b)
    return a * (share @ b.mT) / 2, b * (a.mT @ share) / 2


def _check(model: Any) -> None:
    parts = ("patch_embed", "cls_token", "blocks", "norm", "head")
    if any(getattr(model, part, None) is None for part in parts):
        raise NotApplicable(f"{type(model).__name__}: these LRP rules are for ViTs with [CLS]")
    if not isinstance(model.head, nn.Linear):
        raise NotApplicable(f"{type(model).__name__}: these LRP rules need one linear head")


def _heads(model: Any) -> list[nn.Linear]:
    """Of the tokens 0, 1 ...: a distilled DeiT answers by the mean of two heads."""
    return [model.head, *filter(None, [getattr(model, "head_dist", None)])]


def _shares(logits: Tensor) -> Tensor:
    """What each head's logit gets of a total of 1, by the rule of sums: positive, in proportion to
    its magnitude.
    """
    return logits.abs() / logits.abs().sum().clamp(min=_TINY)


def propagate(model: Any, image: FloatArray, target: int) -> Relevance:
    """Relevance of the target's logit, block by block, first block first.

    Raises
    ------
    NotApplicable
        For a model that is no plain ViT (no [CLS] token, or hierarchical).
    """
    _check(model)
    kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept[module] = (inputs[0][0].double(), output[0].double())

    heads = _heads(model)
    wanted: list[nn.Module] = [model.norm, *heads]
    for block in model.blocks:
        attention = block.attn
        wanted += [block, block.norm1, attention.qkv, attention.q_norm, attention.k_norm]
        wanted += [attention.proj, block.ls1, block.norm2, block.mlp.fc1, block.mlp.fc2, block.ls2]
    handles = [module.register_forward_hook(keep) for module in wanted]
    try:
        with attention_maps(model) as maps, torch.no_grad():
            model(torch.from_numpy(image)[None])
            attentions = [m[0].double() for m in maps]
    finally:
        for handle in handles:
            handle.remove()

    with torch.no_grad():
        relevance = torch.zeros_like(kept[model.norm][0])
        logits = torch.stack([kept[head][1][target] for head in heads])
        for token, (head, share) in enumerate(zip(heads, _shares(logits), strict=True)):
            weight = head.weight.double()
            out = torch.zeros(1, len(weight), dtype=torch.float64)
            out[0, target] = share
            relevance[token] = linear_rule(kept[head][0][None], weight, out)[0]
        of_attention: list[Tensor] = []
        of_tokens: list[Tensor] = []
        for block, attention in zip(reversed(model.blocks), reversed(attentions), strict=True):
            relevance, of_map = _through_block(block, attention, kept, relevance)
            of_attention.append(of_map)
            of_tokens.append(relevance)
    return Relevance(of_attention[::-1], of_tokens[::-1])


def _through_block(
    block: Any,
    attention: Tensor,
    kept: dict[nn.Module, tuple[Tensor, Tensor]],
    relevance: Tensor,
) -> tuple[Tensor, Tensor]:
    """Relevance (N,D) of a block's output to that of its input, and that of its attention."""
    attn, mlp = block.attn, block.mlp
    x = kept[block][0]
    after_attention = kept[block.norm2][0]
    skip, branch = sum_rule(after_attention, kept[block.ls2][1], relevance)
    hidden = linear_rule(kept[mlp.fc2][0], mlp.fc2.weight.double(), branch)
    branch = linear_rule(kept[mlp.fc1][0], mlp.fc1.weight.double(), hidden)
    skip, branch = sum_rule(x, kept[block.ls1][1], skip + branch)
    mixed = linear_rule(kept[attn.proj][0], attn.proj.weight.double(), branch)

    heads, tokens = attention.shape[0], attention.shape[1]

    def by_head(values: Tensor) -> Tensor:
        return values.reshape(tokens, heads, -1).transpose(0, 1)

    def joined(values: Tensor) -> Tensor:
        return values.transpose(0, 1).reshape(tokens, -1)

    qkv = kept[attn.qkv][1]
    value = by_head(qkv.chunk(3, dim=1)[2])
    to_map_, to_value = product_rule(attention, value, by_head(mixed))
    query, key = kept[attn.q_norm][1], kept[attn.k_norm][1]
    to_query, to_key = product_rule(query, key.mT, to_map_)
    back = torch.cat([joined(to_query), joined(to_key.mT), joined(to_value)], dim=1)
    branch = linear_rule(kept[attn.qkv][0], attn.qkv.weight.double(), back)
    return skip + branch, to_map_


def partial_lrp(model: Any, image: FloatArray, target: int) -> FloatArray:
    """Positive relevance of the last block's attention, mean over heads, row of [CLS].

    Source: Voita et al., "Analyzing multi-head self-attention" (ACL 2019), for ViTs as in Chefer et
    al. (CVPR 2021).
    """
    found = propagate(model, image, target)
    return to_map(model, found.attentions[-1].clamp(min=0).mean(dim=0)[0], image)


def cgw1(model: Any, image: FloatArray, target: int) -> FloatArray:
    """Product over blocks, last leftmost, of ``1 + mean_h (∇A ⊙ R_A)⁺``; row of [CLS]."""
    found = propagate(model, image, target)
    with attention_maps(model) as maps:
        logits = model(torch.from_numpy(image)[None])
        slopes = torch.autograd.grad(logits[0, target], maps)
    total = torch.eye(maps[0].shape[-1], dtype=torch.float64)
    for slope, relevance in zip(slopes, found.attentions, strict=True):
        step = (slope[0].double() * relevance).clamp(min=0).mean(dim=0)
        total = total + step @ total
    return to_map(model, total[0], image)
