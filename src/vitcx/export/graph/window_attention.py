"""Attention within a Swin's windows, written so that an engine makes one kernel of it.

Fused kernels take a bias for each head, and windows have one each: so the windows of an image
become heads. (B windows, heads, N, d) is (B, windows heads, N, d) as it lies in memory, and the
biases of all of them are one constant. Of a Swin-T in float16 TensorRT-RTX 1.7.1 then fuses all
twelve attentions; as timm writes them, six.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


@contextlib.contextmanager
def windows_as_heads(module: nn.Module) -> Iterator[None]:
    """Within this, the attention of every Swin block of timm's in `module` is computed so.

    The values are the same but for the order of sums. Models in evaluation mode; no others change.
    """
    attentions: list[Any] = []
    try:
        for block in module.modules():
            if _is_swin_block(block):
                attention: Any = block.attn
                attentions.append(attention)
                attention.forward = partial(_attend, attention, _windows_of(block))
        yield
    finally:
        for attention in attentions:
            del attention.forward  # the class's own is there again


def _is_swin_block(module: nn.Module) -> bool:
    kind = type(module)
    return (kind.__module__, kind.__name__) == (
        "timm.models.swin_transformer",
        "SwinTransformerBlock",
    )


def _windows_of(block: Any) -> int:
    """How many windows the block cuts an image into; what fits none is padded."""
    height, width = block.input_resolution
    return int(-(-height // block.window_size[0]) * -(-width // block.window_size[1]))


def _attend(attention: Any, windows: int, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """timm's `WindowAttention.forward`.

    Parameters
    ----------
    x : (B windows, N, C), an image's windows one behind the other.
    mask : (windows, N, N), 0 or -inf, where windows are shifted.
    """
    rows, length, _ = x.shape
    heads = attention.num_heads
    bias = attention._get_rel_pos_bias()  # (1, heads, N, N)
    if mask is None:
        # Also where it is nothing: of a bias that is not the outcome of a sum, TensorRT-RTX 1.7.1
        # makes no fused kernel.
        mask = bias.new_zeros(windows, length, length)
    windows = mask.shape[0]
    biases = (bias + mask.unsqueeze(1)).reshape(1, windows * heads, length, length)
    qkv = attention.qkv(x).reshape(rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = (part.reshape(-1, windows * heads, length, part.shape[-1]) for part in qkv.unbind(0))
    found = scaled_dot_product_attention(q, k, v, attn_mask=biases)
    joined = found.reshape(rows, heads, length, -1).transpose(1, 2).reshape(rows, length, -1)
    projected: Tensor = attention.proj(joined)
    return projected
