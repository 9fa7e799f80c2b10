"""Which layer of a graph is the embedding, and how it lies in the picture."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vitcx.export.foreign.attention import Shape, Site
from vitcx.export.foreign.graph import Graph
from vitcx.export.foreign.runner import AnyArray
from vitcx.export.graph.resolutions import choose_block, default_threshold
from vitcx.export.graph.squares import (
    LEAST_HITS,
    PROBES,
    Fit,
    Squares,
    rectangles,
    token_grids,
)
from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import LAYERS

_MOST_LISTED = 8


@dataclass(frozen=True)
class Place:
    """A value that lies in the picture as a grid.

    Attributes
    ----------
    value : its name.
    layout : its axes: "BND", "NBD", "BHWD" or "BDHW".
    prefix : tokens before the patches; 0 but for the first two.
    grid : (h, w).
    channels : D.
    fit : how well it lies.
    layer : what it is of its block, one of `vitcx.runtime.manifest.LAYERS`.
    """

    value: str
    layout: str
    prefix: int
    grid: tuple[int, int]
    channels: int
    fit: Fit
    layer: str = "norm1"

    def arranged(self, value: AnyArray) -> NDArray[np.float32]:
        """The value as an embedding (B,D,h,w) float32."""
        if self.layout in ("BND", "NBD"):
            tokens = value if self.layout == "BND" else value.transpose(1, 0, 2)
            patches = tokens[:, self.prefix : self.prefix + math.prod(self.grid)]
            value = patches.transpose(0, 2, 1).reshape(len(patches), self.channels, *self.grid)
        elif self.layout == "BHWD":
            value = value.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(value, dtype=np.float32)


@dataclass(frozen=True)
class Found:
    """The place that was chosen, and whether the graph has blocks of several resolutions."""

    place: Place
    hierarchical: bool

    @property
    def distance_threshold(self) -> float:
        return default_threshold(hierarchical=self.hierarchical)


def candidate_values(sites: Sequence[Site]) -> list[str]:
    """The values that have to be watched to choose a place."""
    values = [v for s in sites for v in (s.source, s.branch, s.block) if v is not None]
    return list(dict.fromkeys(values))


def choose_place(
    sites: Sequence[Site],
    moved: Mapping[str, Sequence[AnyArray]],
    batch_axes: Mapping[str, int],
    squares: Squares,
    layer: str | None,
    stage: int | None,
    block: int,
) -> Found:
    """The embedding that is asked for.

    Parameters
    ----------
    sites : the graph's attentions.
    moved : of `candidate_values`, what each was for every picture of `squares`.
    batch_axes : the axis that has the batch.
    layer, stage, block : as of `vitcx.export.import_onnx`.

    Raises
    ------
    InputError
        If no layer lies as a grid, or not the one that is asked for.
    """

    def place(value: str | None) -> Place | None:
        return None if value is None else place_of(value, moved[value], batch_axes, squares)

    of_sites: list[tuple[Site, Place]] = []
    for site in sites:
        lies = place(site.source) or place(site.block)
        if lies is not None:
            of_sites.append((site, lies))
    if not of_sites:
        raise InputError(
            f"of {len(sites)} attentions in the graph none takes features that lie in the picture "
            "as a grid: if you know where the patches are, name that node with --layer"
            if sites
            else "the graph has no attention: a convolutional network? vitcx explains Vision "
            "Transformers"
        )
    grids = [lies.grid for _, lies in of_sites]
    chosen, hierarchical = choose_block(grids, stage, block, squares.images.shape[2])
    return Found(_layer_of(of_sites[chosen][0], layer, place), hierarchical)


def _layer_of(site: Site, layer: str | None, place: Callable[[str | None], Place | None]) -> Place:
    wanted = layer or ("norm1" if site.is_norm and place(site.source) else "block")
    if wanted == "norm1":
        found = place(site.source) if site.is_norm else None
        refusal = "has no normalisation before its attention: use --layer block"
    elif wanted == "attn":
        # Every token of an attention's output sees all patches, so a change says little of where
        # it lies; it lies as the stream does that it is added to.
        found = place(site.block)
        found = replace(found, value=site.branch) if found and site.branch else None
        refusal = "does not add its attention's output to anything: use --layer norm1"
    else:
        found = place(site.block)
        refusal = "gives nothing that lies in the picture as a grid: use --layer norm1"
    if found is None:
        raise InputError(f"the block whose attention takes '{site.source}' {refusal}")
    return replace(found, layer=wanted)


def place_of(
    value: str,
    moved: Sequence[AnyArray],
    batch_axes: Mapping[str, int],
    squares: Squares,
) -> Place | None:
    """How a value lies in the picture, at best; None if it does not.

    Parameters
    ----------
    moved : what it was for each picture of `squares`, with a batch of one.
    """
    places = [p for p in _places(value, moved, batch_axes.get(value), squares) if p.fit.lies_right]
    # Fewer prefix tokens first, where two do as well.
    return min(places, key=lambda p: (-p.fit.hits, p.fit.distance, p.prefix), default=None)


def _places(
    value: str, moved: Sequence[AnyArray], batch_axis: int | None, squares: Squares
) -> Iterator[Place]:
    shape = moved[0].shape
    if batch_axis not in (0, 1) or len(shape) not in (3, 4) or moved[0].dtype.kind != "f":
        return
    if batch_axis == 1 and len(shape) == 4:
        return
    height, width = squares.images.shape[2:]
    changes = np.stack(moved[1:]).astype(np.float64) - moved[0]
    for layout, channel_axis in _layouts(len(shape), batch_axis):
        norms = np.linalg.norm(changes, axis=channel_axis + 1).squeeze(batch_axis + 1)
        channels = shape[channel_axis]
        if norms.ndim == 3:
            h, w = norms.shape[1:]
            if (h, w) in list(rectangles(h * w, height / width)):
                yield Place(value, layout, 0, (h, w), channels, squares.fit(norms))
            continue
        count = norms.shape[1]
        for prefix, h, w in token_grids(count, height / width):
            grid = norms[:, prefix:].reshape(PROBES, h, w)
            yield Place(value, layout, prefix, (h, w), channels, squares.fit(grid))


def _layouts(rank: int, batch_axis: int) -> list[tuple[str, int]]:
    """Layouts of a value, and the axis of its channels."""
    if rank == 3:
        return [("BND" if batch_axis == 0 else "NBD", 2)]
    return [("BHWD", 3), ("BDHW", 1)]


def named_value(graph: Graph, name: str, sites: Sequence[Site]) -> str:
    """The value that a user means by the name of a node, or of a value.

    Raises
    ------
    InputError
        With the names that are like it, and the layers that vitcx found itself.
    """
    if name in graph.maker and name in graph.data:
        return name
    for node in graph.nodes:
        if node.name == name and node.output[0] in graph.data:
            return str(node.output[0])
    close = difflib.get_close_matches(name, [n.name for n in graph.nodes if n.name], 3, 0.6)
    raise InputError(
        f"the graph has no node or value '{name[:100]}' that depends on the picture"
        + (f" (alike: {', '.join(close)})" if close else "")
        + f": give {', '.join(LAYERS)}{candidates(sites)}"
    )


def candidates(sites: Sequence[Site]) -> str:
    """The layers that could be named, for an error's sentence."""
    names = [site.source for site in reversed(sites)][:_MOST_LISTED]
    return f", or one of {', '.join(names)}" if names else ""


def check_named(place: Place | None, name: str, shape: Shape, sites: Sequence[Site]) -> Place:
    """The place of a value that the user named; `InputError` if it does not lie as a grid."""
    if place is None:
        raise InputError(
            f"the layer '{name}' {shape} does not lie in the picture as a grid: a change of one "
            f"patch of the picture must move it most at that patch in {LEAST_HITS} of {PROBES} "
            f"places at least; choose another{candidates(sites)}"
        )
    return place
