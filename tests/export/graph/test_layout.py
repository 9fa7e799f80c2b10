"""A wrong layout is found out: a changed patch must move the embedding there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.export import tiny
from vitcx.export.graph.embedding import Site, WithEmbedding, find_site
from vitcx.export.graph.finder import find_place
from vitcx.export.graph.layout import Probe, check_layout
from vitcx.export.graph.squares import LEAST_HITS, PROBES
from vitcx.runtime.errors import InputError

PROBE = Probe.of((128, 128), 3)


def moved(arrange: Callable[[Tensor], Tensor], size: tuple[int, int] = (128, 128)) -> int:
    """Hits of patches' colours (B,3,h,w), arranged otherwise."""
    probe = Probe.of(size, 3)
    with torch.no_grad():
        grid = arrange(nn.functional.avg_pool2d(probe.images, 16))
    return probe.fit((grid[1:] - grid[:1]).norm(dim=1).double().numpy()).hits


def test_the_picture_itself_lies_right() -> None:
    assert moved(lambda grid: grid) == PROBES
    assert moved(lambda grid: grid, (96, 160)) >= LEAST_HITS
    # Asymmetric padding of a convolution: less than a cell.
    shift = nn.functional.avg_pool2d
    assert moved(lambda g: shift(nn.functional.pad(g, (1, 1, 1, 1)), 3, 1)) >= LEAST_HITS


@pytest.mark.parametrize(
    ("name", "arrange"),
    [
        ("transposed", lambda g: g.transpose(2, 3)),
        ("mirrored", lambda g: g.flip(3)),
        ("upside down", lambda g: g.flip(2)),
        ("off by one column", lambda g: g.roll(1, 3)),
        ("off by one token", lambda g: g.flatten(2).roll(-1, 2).reshape(g.shape)),
        (
            "by windows",
            lambda g: g.reshape(*g.shape[:2], 2, 4, 2, 4).transpose(3, 4).reshape(g.shape),
        ),
        ("shuffled", lambda g: g.flatten(2)[:, :, torch.randperm(64)].reshape(g.shape)),
        ("everywhere", lambda g: g * 0 + g.mean((2, 3), keepdim=True)),
    ],
)
def test_another_order_does_not(name: str, arrange: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(1)
    assert moved(arrange) < LEAST_HITS


class Transposed(nn.Module):
    """Patches that are laid out by columns, and said to be by rows."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, 16)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.patches(images).mean((2, 3)))
        return logits


def test_a_wrong_layout_is_refused_in_one_sentence() -> None:
    model = Transposed().eval()
    right = WithEmbedding(model, Site("patches", lambda x: x, 0.1, "block"))
    check_layout(right, PROBE, "patches")
    right.close()
    wrong = WithEmbedding(model, Site("patches", lambda x: x.transpose(2, 3), 0.1, "block"))
    with pytest.raises(InputError, match=r"'patches' does not lie in the picture as a grid of 8x8"):
        check_layout(wrong, PROBE, "patches")
    wrong.close()


@pytest.mark.parametrize("family", ["vit", "vit_registers", "swin", "deit_distilled"])
def test_the_finder_agrees_with_what_is_known(family: str) -> None:
    model = tiny.make(family)
    known = find_site(model)
    probe = Probe.of((56, 56) if family == "vit_registers" else (64, 64), 3)
    stage = 1 if family == "swin" else None
    found = find_place(model, probe, None, stage, -1)
    assert (found.place.path, found.layer) == (known.path, "norm1")
    if family != "swin":
        assert found.place.prefix == known.arrange.prefix
        assert found.place.grid == known.arrange.grid
