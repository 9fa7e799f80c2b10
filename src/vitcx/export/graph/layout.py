"""Whether an embedding lies as the picture does: a change of a patch must move it most there.

A few squares of a picture are changed, one at a time. An embedding whose rows and columns are the
picture's moves most where the change was. One that is transposed, taken along a wrong axis, or in
the order of windows does not, and its masks would show places that the model never meant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitcx.export.graph.squares import LEAST_HITS, PROBES, Array, Fit, Squares
from vitcx.runtime.errors import InputError


@dataclass(frozen=True)
class Probe:
    """`Squares` for a torch model.

    Attributes
    ----------
    images : (1 + PROBES, C, H, W) float32, normalised.
    squares : where these differ from the first.
    """

    images: Tensor
    squares: Squares

    @classmethod
    def of(cls, size: tuple[int, int], channels: int) -> Probe:
        """Of a smooth picture of `size` (H, W)."""
        squares = Squares.of(size, channels)
        return cls(torch.from_numpy(squares.images), squares)

    def fit(self, changes: Array) -> Fit:
        """How well a grid moved where the squares are: see `Squares.fit`."""
        return self.squares.fit(changes)


def check_layout(wrapped: nn.Module, probe: Probe, path: str) -> None:
    """Refuse an embedding that does not move where the picture is changed.

    Parameters
    ----------
    wrapped : images to (scores, embedding (B,D,h,w)).
    probe : of the model's input size.
    path : of the embedding's layer, for the error.

    Raises
    ------
    InputError
        With at how many places it moved most.
    """
    with torch.no_grad():
        embedding = wrapped(probe.images)[1]
    changes = (embedding[1:] - embedding[:1]).double().norm(dim=1).numpy()
    fit = probe.fit(changes)
    if not fit.lies_right:
        h, w = changes.shape[1:]
        raise InputError(
            f"the layer at '{path}' does not lie in the picture as a grid of {h}x{w}: a change of "
            f"one patch of the picture moves it most at that patch in {fit.hits} of {PROBES} "
            f"places, expected {LEAST_HITS} at least. Choose another layer (--layer, --stage, "
            "--block), or give its true layout in a ModelSpec"
        )
