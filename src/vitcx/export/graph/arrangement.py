"""How a layer's output becomes a map (B,D,h,w) with the picture's rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitcx.runtime.errors import InputError


@dataclass(frozen=True)
class Tokens:
    """(B, prefix + h·w, D) tokens, row by row."""

    prefix: int
    grid: tuple[int, int]

    def __call__(self, tokens: Tensor) -> Tensor:
        h, w = self.grid
        if tokens.ndim != 3 or tokens.shape[1] != self.prefix + h * w:
            raise InputError(
                f"the layer gives {_shape(tokens)}, expected (B, tokens, D) with {self.prefix} "
                f"prefix tokens and a grid of {h}x{w}, {self.prefix + h * w} tokens: check the "
                "layer, its grid and its prefix tokens"
            )
        patches = tokens[:, self.prefix :].transpose(1, 2)  # (B, D, h·w)
        return patches.reshape(*patches.shape[:2], h, w)


@dataclass(frozen=True)
class Map:
    """(B,h,w,D) or (B,D,h,w) feature maps."""

    channels_last: bool

    def __call__(self, features: Tensor) -> Tensor:
        if features.ndim != 4:
            expected = "(B, h, w, D)" if self.channels_last else "(B, D, h, w)"
            raise InputError(f"the layer gives {_shape(features)}, expected {expected}")
        return features.permute(0, 3, 1, 2) if self.channels_last else features


@dataclass(frozen=True)
class Windows:
    """(B·windows, rows·columns, D) tokens of Swin's attention, of a grid that was rolled by
    minus `shift`, padded below and right to whole windows, and cut into windows row by row.
    """

    grid: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int]

    def __call__(self, tokens: Tensor) -> Tensor:
        (h, w), (rows, columns) = self.grid, self.window
        down, across = -(-h // rows), -(-w // columns)
        if tokens.ndim != 3 or tokens.shape[1] != rows * columns:
            raise InputError(
                f"the attention gives {_shape(tokens)}, expected (B·windows, {rows * columns}, D)"
            )
        x = tokens.reshape(-1, down, across, rows, columns, tokens.shape[-1])
        x = x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, D, padded h, padded w)
        x = x[:, :, :h, :w]
        return torch.roll(x, self.shift, (2, 3)) if any(self.shift) else x


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
