"""The positions that a model's blocks are told, for the tokens of a team.

Rotary positions come with each call of a block, relative ones too or from the attention itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

# What blocks are told beside their tokens, by keyword. A value for each patch, with the patches on
# the last axis but one; or for each pair of tokens, on the last two.
OF_PATCHES = ("rope",)
OF_PAIRS = ("shared_rel_pos_bias", "shared_rel_pos")


def taken(keywords: Mapping[str, Any], kept: Tensor, patches: Tensor) -> dict[str, Any]:
    """A block's keywords for the rows of a batch: `kept` (B,t) of the tokens, `patches` (B,n)."""
    taken = dict(keywords)
    for name, value in keywords.items():
        if isinstance(value, Tensor):
            taken[name] = (
                _of_patches(value, patches) if name in OF_PATCHES else of_pairs(value, kept)
            )
    return taken


def _of_patches(values: Tensor, patches: Tensor) -> Tensor:
    """(N,d) or (heads,N,d) taken at (B,n): (B,1,n,d) or (B,heads,n,d), as attention has them."""
    if values.ndim == 2:
        return values[patches].unsqueeze(1)
    return values[:, patches].transpose(0, 1)


def of_pairs(bias: Tensor, kept: Tensor) -> Tensor:
    """([1,]heads,T,T) taken at (B,t) on both axes: (B,heads,t,t)."""
    count = bias.shape[-1]
    pairs = kept[:, :, None] * count + kept[:, None, :]
    flat = bias.reshape(bias.shape[-3], count * count)
    return flat[:, pairs].transpose(0, 1)


@contextlib.contextmanager
def positions_taken(model: Any, take: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, attentions that add a bias of their own for each pair of tokens add ``take(bias)``.

    timm's BEiT has it in a method of the attention, its ViTs with relative positions in a module.
    """
    with contextlib.ExitStack() as undo:
        for module in model.modules():
            for name in ("_get_rel_pos_bias", "get_bias"):
                method = getattr(module, name, None)
                if callable(method) and name not in vars(module):
                    setattr(module, name, _then(method, take))
                    undo.callback(delattr, module, name)
        yield


def _then(first: Callable[[], Tensor], second: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    return lambda: second(first())
