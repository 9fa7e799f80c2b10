"""Attention with other than four axes, which torch's ONNX exporter does not take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch.nn.functional
from torch import Tensor


@contextlib.contextmanager
def four_axes() -> Iterator[None]:
    """Within, torch's attention is given (batch, heads, tokens, width), whatever it is called with.

    timm's Twins, SAM and NesT call it with three axes or five.
    """
    original = torch.nn.functional.scaled_dot_product_attention

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *arguments: Any,
        **named: Any,
    ) -> Tensor:
        axes = query.shape[:-2]
        if len(axes) == 2:
            return original(query, key, value, attn_mask, *arguments, **named)
        # (B,N,d) gets one head; (B,a,heads,N,d) a·heads of them.
        if attn_mask is not None:
            # Of as many axes as the scores have, and as large where heads are joined.
            attn_mask = attn_mask.reshape((1,) * (query.ndim - attn_mask.ndim) + attn_mask.shape)
            if len(axes) > 2:
                attn_mask = attn_mask.expand(-1, *axes[1:], -1, -1)
            attn_mask = _joined(attn_mask)
        found = original(
            _joined(query), _joined(key), _joined(value), attn_mask, *arguments, **named
        )
        return found.reshape(*axes, *found.shape[-2:])

    torch.nn.functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = original


def _joined(values: Tensor) -> Tensor:
    if values.ndim == 3:
        return values.unsqueeze(1)
    return values.reshape(values.shape[0], -1, *values.shape[-2:])
