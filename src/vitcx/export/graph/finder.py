"""Finds the patch embedding of a model that nobody has described, by watching it run.

Submodules in which an attention is computed, and whose output lies in the picture as a grid, are
its blocks. Of several resolutions the one nearest to patches of 16 pixels is taken, the stage that
the paper takes of a Swin; and of its blocks the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vitcx.export.graph.layout import Probe
from vitcx.export.graph.observing import Array, Call, kind_of, observe, refuse_without_attention
from vitcx.export.graph.resolutions import choose_block
from vitcx.export.graph.squares import Fit, rectangles, token_grids
from vitcx.runtime.errors import InputError

# Elements of a list, which blocks are: blocks.3, or torchvision's encoder_layer_3.
_ELEMENT = re.compile(r"(?:^|[._])\d+$")


@dataclass(frozen=True)
class Place:
    """A submodule whose output lies in the picture as a grid.

    Attributes
    ----------
    path : of the submodule.
    layout : "BND", "BHWD" or "BDHW", the axes of its output.
    prefix : tokens before the patches; 0 but for "BND".
    grid : (h, w).
    fit : how well it lies.
    """

    path: str
    layout: str
    prefix: int
    grid: tuple[int, int]
    fit: Fit


@dataclass(frozen=True)
class Found:
    """What `find_place` chose: the place, which layer of the block it is, and whether the model has
    several resolutions.
    """

    place: Place
    layer: str
    hierarchical: bool


def find_place(
    model: nn.Module, probe: Probe, layer: str | None, stage: int | None, block: int
) -> Found:
    """Find the embedding of any model with attention.

    Parameters
    ----------
    model : images to logits, in evaluation mode.
    probe : of the model's input size.
    layer : "norm1" (the normalisation before the block's attention), "attn", "block"; None is
        norm1, or block where the block has no such.
    stage, block : as of `choose_block`.

    Raises
    ------
    InputError
        If the model has no attention, or no block whose output is a grid.
    """
    calls, _ = observe(model, probe.images)
    attentions = _attentions(calls)
    if not attentions:
        refuse_without_attention(model)
    blocks = _blocks(calls, attentions, probe)
    if not blocks:
        raise InputError(
            f"{kind_of(model)} has attention, but no block of it gives features that lie in "
            "the picture as a grid: if you know where its patches are, call "
            "vitcx.export.export_model(module, out, spec=ModelSpec(layer_path=..., grid=...)) from "
            "Python"
        )
    grids = [place.grid for _, place in blocks]
    chosen, hierarchical = choose_block(grids, stage, block, probe.images.shape[2])
    call, place = blocks[chosen]
    return _layer_of(call, place, calls, attentions, probe, layer, hierarchical=hierarchical)


def _attentions(calls: Sequence[Call]) -> list[Call]:
    """The innermost calls that attend, in order of their ends."""
    attending = [c for c in calls if c.attends]
    return [
        c
        for c in attending
        if not any(o.path.startswith(f"{c.path}.") and o.began > c.began for o in attending)
    ]


def _blocks(
    calls: Sequence[Call], attentions: Sequence[Call], probe: Probe
) -> list[tuple[Call, Place]]:
    """For each attention the innermost element of a list around it that lies as a grid."""
    blocks: dict[str, tuple[Call, Place]] = {}
    for attention in attentions:
        around = [
            c
            for c in calls
            if c.began <= attention.began and c.ended >= attention.ended and _ELEMENT.search(c.path)
        ]
        for call in around:  # the inner ones end first
            place = place_of(call, probe)
            if place is not None:
                blocks.setdefault(call.path, (call, place))
                break
    # A block around another one, of several attentions, is no block of its own.
    return [
        (c, p)
        for path, (c, p) in blocks.items()
        if not any(
            other.startswith(f"{path}.") and blocks[other][1].grid == p.grid for other in blocks
        )
    ]


def _layer_of(
    call: Call,
    place: Place,
    calls: Sequence[Call],
    attentions: Sequence[Call],
    probe: Probe,
    layer: str | None,
    *,
    hierarchical: bool,
) -> Found:
    inside = [
        c
        for c in calls
        if c.path.startswith(f"{call.path}.") and c.ended < call.ended and c.began > call.began
    ]
    attention = [a for a in attentions if a is call or a in inside][-1]
    if layer in (None, "norm1"):
        # The last normalisation that is a neighbour of the attention, and before it.
        for norm in reversed([c for c in inside if c.ended < attention.began]):
            parent = norm.path.rpartition(".")[0]
            if norm.is_norm and f"{attention.path}.".startswith(f"{parent}."):
                found = place_of(norm, probe, place.grid)
                if found is not None:
                    return Found(found, "norm1", hierarchical)
        if layer == "norm1":
            raise InputError(
                f"the block at '{call.path}' has no normalisation before its attention: use "
                "--layer block"
            )
    if layer == "attn":
        for outer in reversed([c for c in inside if c.attends]):
            # Every token of an attention's output sees all patches, so a change says little of
            # where it lies; it lies as its block does, whose output it is added to.
            if outer.shape == call.shape:
                return Found(replace(place, path=outer.path), "attn", hierarchical)
        raise InputError(
            f"the attention of the block at '{call.path}' gives nothing of the block's own layout: "
            "use --layer block"
        )
    return Found(place, "block", hierarchical)


def place_of(call: Call, probe: Probe, grid: tuple[int, int] | None = None) -> Place | None:
    """How the call's output lies in the picture, at best; None if it does not.

    Parameters
    ----------
    grid : the only one that is wanted.
    """
    places = [
        Place(call.path, layout, prefix, (changes.shape[1], changes.shape[2]), probe.fit(changes))
        for layout, prefix, changes in _grids(call, probe.images.shape[2:])
        if grid is None or changes.shape[1:] == grid
    ]
    right = [place for place in places if place.fit.lies_right]
    # Fewer prefix tokens first, where two do as well.
    return min(right, key=lambda p: (-p.fit.hits, p.fit.distance, p.prefix), default=None)


def _grids(call: Call, size: Sequence[int]) -> Iterator[tuple[str, int, Array]]:
    """(layout, prefix tokens, changes (PROBES, h, w)) that the output's shape allows."""
    height, width = size
    for layout, changes in call.changes.items():
        if layout == "BND":
            count = changes.shape[1]
            for prefix, h, w in token_grids(count, height / width):
                yield layout, prefix, changes[:, prefix:].reshape(len(changes), h, w)
        else:
            h, w = changes.shape[1:]
            if (h, w) in list(rectangles(h * w, height / width)):
                yield layout, 0, changes


def as_arguments(place: Place) -> dict[str, Any]:
    """What a `ModelSpec` would say of the place."""
    return {
        "layer_path": place.path,
        "token_layout": place.layout,
        "prefix_tokens": place.prefix,
        "grid": place.grid,
    }
