"""Floating-point operations of a bundle's forward pass, counted in its graph.

Only what a matrix unit does: products and convolutions, two operations for each multiply-add. The
graph's own, not the model's in PyTorch: its last block is cut to the tokens that count.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any


def operations_of_a_pass(model: Path) -> int:
    """Of one image.

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
