"""Questions to a graph: who makes a value, who takes it, what it depends on.

The graph is not changed here; after a change a new `Graph` is made.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from vitcx.export.foreign.reading import nodes_of

# Nodes that give the values they were given, in another place or type.
LAYOUT = frozenset(
    {
        "Cast",
        "DequantizeLinear",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "QuantizeLinear",
        "Reshape",
        "Slice",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
# Products with weights, of whatever precision.
PRODUCTS = frozenset(
    {
        "Conv",
        "ConvInteger",
        "Einsum",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "Gemm",
        "MatMul",
        "MatMulInteger",
        "MatMulNBits",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
# What they give is the shape of their input, not its values.
_SHAPES = frozenset({"Shape", "Size"})


class Graph:
    """An onnx.GraphProto, indexed.

    Attributes
    ----------
    nodes : in the order of the file, which is topological.
    maker : value -> index of the node that gives it.
    takers : value -> indices of the nodes that take it.
    data : values that depend on the picture's values, not only on its shape.
    """

    def __init__(self, graph: Any, picture: str) -> None:
        self.nodes: list[Any] = list(graph.node)
        self.maker: dict[str, int] = {}
        self.takers: dict[str, list[int]] = defaultdict(list)
        self.data: set[str] = {picture}
        # The nodes that a node depends on, itself too, as bits.
        self._before: list[int] = []
        for index, node in enumerate(self.nodes):
            before = 1 << index
            inputs = inputs_of(node)
            for name in inputs:
                self.takers[name].append(index)
                if name in self.maker:
                    before |= self._before[self.maker[name]]
            self._before.append(before)
            if node.op_type not in _SHAPES and not self.data.isdisjoint(inputs):
                self.data.update(node.output)
            for name in node.output:
                self.maker[name] = index

    def node_of(self, value: str) -> Any:
        """The node that gives a value; None for inputs and weights."""
        index = self.maker.get(value)
        return None if index is None else self.nodes[index]

    def depends(self, value: str, index: int) -> bool:
        """Whether a value depends on the node at `index`."""
        maker = self.maker.get(value)
        return maker is not None and bool(self._before[maker] >> index & 1)

    def is_ancestor(self, value: str, other: str) -> bool:
        """Whether `other` is made of `value`, or is `value`."""
        if value == other:
            return True
        maker = self.maker.get(value)
        return maker is not None and maker != self.maker.get(other) and self.depends(other, maker)

    def data_inputs(self, node: Any) -> list[str]:
        """The node's inputs that depend on the picture."""
        return [name for name in node.input if name in self.data]

    def is_weighted_product(self, node: Any) -> bool:
        """Whether a node multiplies one value of the picture with weights."""
        return node.op_type in PRODUCTS and len(self.data_inputs(node)) == 1

    def is_data_product(self, node: Any) -> bool:
        """Whether a node multiplies two values of the picture."""
        return node.op_type in ("MatMul", "Einsum", "FusedMatMul", "Gemm") and all(
            name in self.data for name in node.input[:2]
        )

    def unwound(self, value: str) -> str:
        """The value that lies behind pure changes of layout.

        Behind a cyclic shift (slices of one value, joined again) too.
        """
        while (node := self.node_of(value)) is not None:
            if node.op_type in LAYOUT and node.input[0] in self.data:
                value = node.input[0]
                continue
            if node.op_type == "Concat":
                sources = [self.node_of(name) for name in node.input]
                whole = {
                    source.input[0] if source is not None and source.op_type == "Slice" else ""
                    for source in sources
                }
                if len(whole) == 1 and "" not in whole:
                    value = whole.pop()
                    continue
            break
        return value

    def residual(self, node: Any) -> tuple[str, str] | None:
        """(stream, branch) of a node that adds a branch of the picture's values to the stream that
        it came from; None for other nodes.
        """
        if node.op_type != "Add" or not all(name in self.data for name in node.input):
            return None
        first, second = node.input
        if self.is_ancestor(first, second):
            return first, second
        if self.is_ancestor(second, first):
            return second, first
        # The stream's layout may have been changed on the way to the sum.
        for stream, branch in ((first, second), (second, first)):
            base = self.unwound(stream)
            if base != stream and self.is_ancestor(base, branch):
                return stream, branch
        return None


def inputs_of(node: Any) -> list[str]:
    """What a node takes, within its branches too."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in nodes_of(graph) if graph.node else ():
                names += [name for name in inner.input if name]
            names += [output.name for output in graph.output]
    return names


def needed_nodes(nodes: list[Any], outputs: list[str]) -> list[Any]:
    """The nodes that the outputs depend on, in their order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(inputs_of(node))
    return kept[::-1]
