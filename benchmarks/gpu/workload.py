"""How much an explanation has to do: how many masks it has, and the operations of a forward pass.

A model's masks are as many as its clusters are, which differs from picture to picture, and means
nothing with random weights. A figure of speed is for a number of forward passes that is said.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from vitcx.runtime.method.masks import cosine_distances, vit_masks

FloatArray = NDArray[np.float32]


def threshold_for(embedding: FloatArray, size: tuple[int, int], masks: int) -> tuple[float, int]:
    """The distance threshold that leaves nearest to `masks` masks, and how many it leaves.

    Parameters
    ----------
    embedding : (D,h,w) float32.
    size : (H, W) in pixels.
    masks : wanted, at least 1.
    """
    kept = vit_masks(embedding, size)
    if len(kept) < 2:
        return 0.0, len(kept)
    distances = squareform(cosine_distances(kept, size), checks=False)
    heights = np.sort(linkage(distances, method="complete")[:, 2])
    # Between two merges, as far from both as can be: rounding then changes no count.
    edges = np.concatenate([[0.0], heights, [1.0]])
    found = [
        (abs(len(kept) - merges - masks), len(kept) - merges, (low + high) / 2)
        for merges, (low, high) in enumerate(itertools.pairwise(edges))
        if low < high <= 1.0
    ]
    _, count, threshold = min(found)
    return float(threshold), count


def operations_of_a_pass(model: Path) -> int:
    """Floating-point operations of a pass of one image, counted in the graph.

    Only what a matrix unit does: products and convolutions, two operations for each multiply-add.
    The graph's own, not the model's in PyTorch: its last block is cut to the tokens that count.

    Raises
    ------
    ValueError
        A shape in the graph is not known, or it has a node that is not counted here.
    """
    import onnx
    from onnx.shape_inference import infer_shapes

    # Not `load`: the values of large weights are not needed, and may lie beside the graph.
    proto = onnx.load(str(model), load_external_data=False)
    graph = proto.graph
    for image in graph.input:
        image.type.tensor_type.shape.dim[0].Clear()
        image.type.tensor_type.shape.dim[0].dim_value = 1
    # What the exporter knew of shapes has the batch in it as a name.
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].Clear()
    graph = infer_shapes(proto, data_prop=True).graph
    shapes: dict[str, list[int]] = {w.name: list(w.dims) for w in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = [dim.dim_value for dim in dims]
    return sum(_operations(node, shapes) for node in graph.node)


def _operations(node: Any, shapes: dict[str, list[int]]) -> int:
    def shape(name: str) -> list[int]:
        if name not in shapes:
            raise ValueError(f"the shape of '{name}' in the graph is not known")
        return shapes[name]

    if node.op_type == "MatMul":
        return 2 * math.prod(shape(node.output[0])) * shape(node.input[0])[-1]
    if node.op_type == "Gemm":
        return 2 * shape(node.output[0])[0] * math.prod(shape(node.input[1]))
    if node.op_type == "Conv":
        weights = shape(node.input[1])  # (out, in of a group, height, width)
        return 2 * math.prod(shape(node.output[0])) * math.prod(weights[1:])
    if node.op_type == "Attention":
        queries, keys, values = (shape(name) for name in node.input[:3])
        # (B,L,D) or (B,heads,L,D): products of queries and keys, and of those with the values.
        depth = [math.prod(part) // part[-2] for part in (queries, values)]
        return 2 * queries[-2] * keys[-2] * sum(depth)
    if node.op_type in ("Einsum", "MatMulInteger", "ConvInteger", "QLinearMatMul"):
        raise ValueError(f"the operations of {node.op_type} are not counted")
    return 0
