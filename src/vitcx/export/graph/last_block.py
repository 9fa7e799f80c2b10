"""Leaves out of the last block what no answer depends on, exactly.

A ViT that classifies by its [CLS] token reads the last block's output at that token alone. The
patches give it keys and values; their own queries, projection and MLP come to nothing. Without
them DeiT-Tiny has 6.5 % fewer multiplications. The embedding that a bundle gives is taken before
that, at the block's input normalisation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The same sums, some in another order, as a part of the largest magnitude.
_TOLERANCE = 1e-4


@contextlib.contextmanager
def prefix_tokens_only(
    model: nn.Module, site_path: str, wrapped: nn.Module, images: Tensor
) -> Iterator[bool]:
    """Within, the last block of `model` gives its prefix tokens alone; says whether it does.

    Parameters
    ----------
    model : any module; one that is not surely a plain ViT with a [CLS] token is left as it is, and
        so is one whose outputs would change: with layers replaced (adapters, quantised ones) or
        hooks on them.
    site_path : of the embedding; if that is taken after the last block's attention has begun, the
        model is left as it is.
    wrapped : images to (scores, embedding), which must stay the same.
    images : (B,channels,H,W) float32 to compare on.
    """
    block = _last_block(model, site_path)
    if block is None or not _stays_the_same(block, model, wrapped, images):
        yield False
        return
    block.forward = _forward(block, int(getattr(model, "num_prefix_tokens")))  # noqa: B009
    try:
        yield True
    finally:
        del block.forward


def _stays_the_same(block: Any, model: Any, wrapped: nn.Module, images: Tensor) -> bool:
    """Whether the shortened block gives what the whole one gives."""
    with torch.no_grad():
        expected = wrapped(images)
        try:
            block.forward = _forward(block, int(model.num_prefix_tokens))
            found = wrapped(images)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return False
        finally:
            block.__dict__.pop("forward", None)
    return all(
        one.shape == two.shape
        and bool((one - two).abs().max() <= _TOLERANCE * one.abs().max().clamp(min=1e-6))
        for one, two in zip(expected, found, strict=True)
    )


def _last_block(model: Any, site_path: str) -> Any | None:
    """The block, if leaving out its patches is known to change nothing."""
    from vitcx.export.timm_import import import_timm

    timm = import_timm()
    vit, deit = timm.models.vision_transformer, timm.models.deit
    if type(model) not in (vit.VisionTransformer, deit.VisionTransformerDistilled):
        return None
    last = len(model.blocks) - 1
    part, *rest = site_path.split(".")
    before = part == "blocks" and (int(rest[0]) < last or rest[1:] == ["norm1"])
    block = model.blocks[last]
    attention = getattr(block, "attn", None)
    if (
        before
        and type(block) is vit.Block
        # Attention is computed here and not called: what hangs on it would be passed over.
        and attention is not None
        and not any(_has_hooks(part) for part in attention.modules())
        and type(getattr(attention, "qkv", None)) is nn.Linear
        and model.global_pool == "token"
        and getattr(model, "attn_pool", None) is None
        and model.cls_token is not None
        and type(attention) is vit.Attention
        and getattr(attention, "gate", None) is None
        and isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity)
    ):
        return block
    return None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _forward(block: Any, prefix: int) -> Callable[..., Tensor]:
    attention = block.attn
    heads, width = attention.num_heads, attention.num_heads * attention.head_dim
    weight, bias = attention.qkv.weight.detach(), attention.qkv.bias
    # Copies, so that each is a whole weight of the graph and not a piece cut out at run time.
    weights = weight[:width].clone(), weight[width:].clone()
    biases = (None, None)
    if bias is not None:
        biases = bias[:width].detach().clone(), bias[width:].detach().clone()

    def forward(x: Tensor, **nothing: Any) -> Tensor:
        """(B,N,D) tokens to the (B,prefix,D) that the block makes of the first ones."""
        tokens = block.norm1(x)
        q = F.linear(tokens[:, :prefix], weights[0], biases[0])
        kv = F.linear(tokens, weights[1], biases[1])
        q = q.reshape(q.shape[0], prefix, heads, -1).transpose(1, 2)
        kv = kv.reshape(kv.shape[0], kv.shape[1], 2, heads, -1).permute(2, 0, 3, 1, 4)
        k, v = kv.unbind(0)
        q, k = attention.q_norm(q), attention.k_norm(k)
        attended = F.scaled_dot_product_attention(q, k, v)
        attended = attended.transpose(1, 2).reshape(q.shape[0], prefix, width)
        x = x[:, :prefix] + block.ls1(attention.proj(attended))
        made: Tensor = x + block.ls2(block.mlp(block.norm2(x)))
        return made

    return forward
