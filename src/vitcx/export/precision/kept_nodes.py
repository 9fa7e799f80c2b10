"""Which nodes of a graph stay in float32 whatever its precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vitcx.runtime.manifest import EMBEDDING

# Sums of many terms, exponentials, and what divides by them. The LayerNorm of a ViT in float16
# ruins its accuracy on TensorRT (NVIDIA/TensorRT issues 2709, 2564, 4723).
KEPT_OPS = frozenset(
    {
        "BatchNormalization",
        "Cast",  # says its type itself
        "Exp",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LogSoftmax",
        "Pow",
        "RMSNormalization",
        "Reciprocal",
        "ReduceL2",
        "ReduceSumSquare",
        "Resize",  # its scales are float32 by definition
        "Softmax",
        "Sqrt",
    }
)
# Nodes that give the values they were given, in another place.
MOVES = frozenset(
    {
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
_NORMALISATIONS = frozenset(op for op in KEPT_OPS if op.endswith("Normalization"))


def classifier_nodes(graph: Any) -> set[Any]:
    """The nodes of an onnx_ir graph from the last matrix product to the probabilities.

    They are a thousandth of the work. Logits in float16 are off by 0.01, and so would be the
    probabilities, relatively.
    """
    nodes: set[Any] = set()
    waiting = [graph.outputs[0].producer()]
    while waiting:
        node = waiting.pop()
        if node is None or node in nodes or node.op_type in _NORMALISATIONS:
            continue
        nodes.add(node)
        if node.op_type not in _PRODUCTS:
            waiting += _producers(node)
    return nodes


def layout_nodes(graph: Any) -> set[Any]:
    """The nodes that only lay out the embedding: between its layer and the graph's output.

    A graph that scores teams gives none.
    """
    nodes: set[Any] = set()
    waiting = [output.producer() for output in graph.outputs if output.name == EMBEDDING]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in nodes and node.op_type in MOVES:
            nodes.add(node)
            waiting += _producers(node)
    return nodes


def first_linears(graph: Any, count: int) -> list[Any]:
    """The first `count` products with weights, in the order of the graph."""
    linears = [
        node
        for node in graph
        if node.op_type in ("Gemm", "MatMul") and node.inputs[1].is_initializer()
    ]
    return linears[:count]


def _producers(node: Any) -> Iterator[Any]:
    return (value.producer() for value in node.inputs if value is not None)
