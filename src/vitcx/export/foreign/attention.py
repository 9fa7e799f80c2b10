"""Finds the attentions of a graph, and around each the layers that can be an embedding.

An attention is two products of the picture's values, one after the other: queries with keys, and
the weights that come of it with the values. So it is found whatever lies between, a softmax in one
node or in many, and whatever names the exporting program gave.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vitcx.export.foreign.graph import Graph

Shape = tuple[int, ...]

# Attentions in one node -> its inputs that queries, keys and values come from.
_FUSED = {
    ("", "Attention"): (0, 1, 2),
    ("ai.onnx", "Attention"): (0, 1, 2),
    ("com.microsoft", "MultiHeadAttention"): (0, 1, 2),
    ("com.microsoft", "Attention"): (0, 0, 0),
}
# Nodes between the two products: scale, mask, softmax and their layout. No attention has more.
_MOST_BETWEEN = 60
_MOST_BEHIND = 60
_SOFTMAXES = frozenset({"Softmax", "Exp"})


@dataclass(frozen=True)
class Site:
    """One attention and the values around it.

    Attributes
    ----------
    index : of the node that gives its result.
    source : what queries, keys and values are all made of, before their projection: the
        normalisation before the attention, or the block's input where there is none.
    is_norm : `source` is a normalisation of its own, and not what the attention is added to.
    branch : what is added to the stream: the attention's output; None where nothing is added.
    block : the stream behind the whole block; None likewise.
    """

    index: int
    source: str
    is_norm: bool
    branch: str | None
    block: str | None


def find_sites(graph: Graph, shapes: Mapping[str, Shape]) -> list[Site]:
    """The attentions of a graph, in its order.

    Those with fewer queries than keys are left out: they pool the patches, or look at them for a
    class token.

    Parameters
    ----------
    graph : to look in.
    shapes : of its values.
    """
    found: list[tuple[int, list[str]]] = []
    for index, node in enumerate(graph.nodes):
        roots = _roots(graph, node, shapes)
        if roots is not None:
            found.append((index, roots))
    indices = [index for index, _ in found]
    residuals = [
        (index, *parts)
        for index, node in enumerate(graph.nodes)
        if (parts := graph.residual(node)) is not None
    ]
    sites = []
    for place, (index, roots) in enumerate(found):
        source = _common_source(graph, roots)
        if source is None:
            continue
        later = indices[place + 1 :]
        sites.append(_site(graph, index, source, residuals, later))
    return sites


def _roots(graph: Graph, node: Any, shapes: Mapping[str, Shape]) -> list[str] | None:
    """What the queries, keys and values of the attention that ends in `node` come from."""
    places = _FUSED.get((node.domain, node.op_type))
    if places is not None and node.input and node.input[0] in graph.data:
        roots = [
            node.input[place]
            for place in places
            if place < len(node.input) and node.input[place] in graph.data
        ]
        first, second = (shapes.get(name, ()) for name in (roots[0], roots[min(1, len(roots) - 1)]))
        pools = len(first) >= 2 and len(second) >= 2 and first[-2] < second[-2]
        return None if pools else roots
    if not graph.is_data_product(node):
        return None
    for weights, values in ((node.input[0], node.input[1]), (node.input[1], node.input[0])):
        product = _product_behind(graph, weights)
        if product is None:
            continue
        scores = shapes.get(product.output[0], ())
        if len(scores) >= 2 and scores[-2] < scores[-1]:
            return None
        return [*product.input[:2], values]
    return None


def _product_behind(graph: Graph, value: str) -> Any:
    """The product of queries and keys that a value is a softmax, or another function, of."""
    waiting, seen = [(value, False)], {value}
    while waiting and len(seen) < _MOST_BETWEEN:
        name, softened = waiting.pop(0)
        node = graph.node_of(name)
        if node is None or name not in graph.data:
            continue
        if graph.is_data_product(node):
            return node
        # Heads that talk to one another mix the scores by weights; other products with weights lead
        # out of the attention.
        if graph.is_weighted_product(node) and not (softened and node.op_type != "Conv"):
            continue
        if graph.residual(node) is not None:
            continue
        for before in graph.data_inputs(node):
            if before not in seen:
                seen.add(before)
                waiting.append((before, softened or node.op_type in _SOFTMAXES))
    return None


def _common_source(graph: Graph, roots: Iterable[str]) -> str | None:
    """The value that all `roots` are projections of."""
    inputs: list[str] = []
    for root in dict.fromkeys(roots):
        inputs += _projected(graph, root)
    candidates = [
        name for name in dict.fromkeys(inputs) if all(graph.is_ancestor(name, o) for o in inputs)
    ]
    return candidates[0] if candidates else None


def _projected(graph: Graph, value: str) -> list[str]:
    """What the products with weights take that a value is next to."""
    found, waiting, seen = [], [value], {value}
    while waiting and len(seen) < _MOST_BEHIND:
        name = waiting.pop(0)
        node = graph.node_of(name)
        if node is None:
            continue
        if graph.is_weighted_product(node):
            found.append(graph.unwound(graph.data_inputs(node)[0]))
            continue
        for before in graph.data_inputs(node):
            if before not in seen:
                seen.add(before)
                waiting.append(before)
    return found or [graph.unwound(value)]


def _site(
    graph: Graph,
    index: int,
    source: str,
    residuals: Iterable[tuple[int, str, str]],
    later: Iterable[int],
) -> Site:
    """The values around the attention that ends at `index`."""
    after = [(at, s, b) for at, s, b in residuals if at > index]
    stream = branch = block = None
    for at, first, second in after:
        if block is None:
            if graph.depends(second, index) and not graph.depends(first, index):
                stream, branch, block = first, second, graph.nodes[at].output[0]
        elif graph.unwound(first) == block and not any(graph.depends(second, i) for i in later):
            block = graph.nodes[at].output[0]
    is_norm = stream is None or graph.unwound(stream) != graph.unwound(source)
    return Site(index, source, is_norm, branch, block)
