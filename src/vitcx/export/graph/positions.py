"""The positions that a model's blocks are told, for the tokens of a team.

Rotary positions come with each call of a block, relative ones too or from the attention itself.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from vitcx.export.graph.blocks import BlockCall

# What blocks are told beside their tokens, by keyword. A value for each patch, with the patches on
# the last axis but one; or for each pair of tokens, on the last two.
OF_PATCHES = ("rope", "position_embeddings")
OF_PAIRS = ("shared_rel_pos_bias", "shared_rel_pos", "relative_position_bias", "attention_mask")

# Modules of transformers that make a bias for each pair of tokens.
_BIAS_CLASS = re.compile(r"\w*RelativePositionBias")

Take = Callable[[Tensor], Tensor]


def strange_value(call: BlockCall, patches: int, every: int) -> str | None:
    """The first thing that a block is told of which nobody knows what it is, in words.

    Parameters
    ----------
    call : what a block is given beside its tokens.
    patches, every : how many patches there are, and how many tokens.
    """
    for place, value in enumerate(call.rest):
        if _tensors_in(value):
            return f"a tensor in place {place + 1}"
    for name, value in call.keywords.items():
        for tensor in _tensors_in(value):
            shape = tuple(tensor.shape)
            of_patches = name in OF_PATCHES and len(shape) in (2, 3) and shape[-2] == patches
            of_pairs = name in OF_PAIRS and len(shape) in (3, 4) and shape[-2:] == (every, every)
            if not (of_patches or (of_pairs and (len(shape) == 3 or shape[0] == 1))):
                return f"'{name}' {shape}"
    return None


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, tuple | list):
        return [tensor for each in value for tensor in _tensors_in(each)]
    return [value] if isinstance(value, Tensor) else []


def for_team(call: BlockCall, patch: Take, pair: Take) -> BlockCall:
    """`call` with the positions of a team's tokens.

    Parameters
    ----------
    call : what a block is given beside its tokens.
    patch, pair : take the team's out of a value for each patch, and for each pair of tokens.
    """
    keywords = {
        name: _each(value, patch if name in OF_PATCHES else pair)
        for name, value in call.keywords.items()
    }
    return BlockCall(call.rest, keywords)


def _each(value: Any, take: Take) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_each(one, take) for one in value)
    return take(value) if isinstance(value, Tensor) else value


def of_patches(values: Tensor, patches: Tensor) -> Tensor:
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
def positions_taken(model: Any, take: Take) -> Iterator[None]:
    """Within, attentions that add a bias of their own for each pair of tokens add ``take(bias)``.

    timm's BEiT has it in a method of the attention, its ViTs with relative positions and
    transformers' BEiT in a module.
    """
    with contextlib.ExitStack() as undo:
        for module in model.modules():
            names = ["_get_rel_pos_bias", "get_bias"]
            if _BIAS_CLASS.fullmatch(type(module).__name__):
                names.append("forward")
            for name in names:
                method = getattr(module, name, None)
                if callable(method) and name not in vars(module):
                    setattr(module, name, _then(method, take))
                    undo.callback(delattr, module, name)
        yield


def _then(first: Callable[..., Tensor], second: Take) -> Callable[..., Tensor]:
    return lambda *arguments, **named: second(first(*arguments, **named))
