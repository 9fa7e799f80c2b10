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

import torch.nn.functional as F
from torch import Tensor, nn


@contextlib.contextmanager
def prefix_tokens_only(model: nn.Module, site_path: str) -> Iterator[bool]:
    """Within, the last block of `model` gives its prefix tokens alone; says whether it does.

    Parameters
    ----------
    model : any module; one that is not surely a plain ViT with a [CLS] token is left as it is.
    site_path : of the embedding; if that is taken after the last block's attention has begun, the
        model is left as it is.
    """
    block = _last_block(model, site_path)
    if block is None:
        yield False
        return
    block.forward = _forward(block, int(getattr(model, "num_prefix_tokens")))  # noqa: B009
    try:
        yield True
    finally:
        del block.forward


def _last_block(model: Any, site_path: str) -> Any | None:
    """The block, if leaving out its patches is known to change nothing."""
    from vitcx.export.sources.timm_import import import_timm

    timm = import_timm()
    vit, deit = timm.models.vision_transformer, timm.models.deit
    if type(model) not in (vit.VisionTransformer, deit.VisionTransformerDistilled):
        return None
    last = len(model.blocks) - 1
    part, *rest = site_path.split(".")
    before = part == "blocks" and (int(rest[0]) < last or rest[1:] == ["norm1"])
    block, attention = model.blocks[last], model.blocks[last].attn
    if (
        before
        and model.global_pool == "token"
        and getattr(model, "attn_pool", None) is None
        and model.cls_token is not None
        and type(block) is vit.Block
        and type(attention) is vit.Attention
        and getattr(attention, "gate", None) is None
        and isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity)
    ):
        return block
    return None


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
