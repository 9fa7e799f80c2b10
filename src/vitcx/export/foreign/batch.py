"""Makes the batch of a graph dynamic that was written for a fixed one.

The axis in which a value has the batch is followed from the input through every node. Shapes that
are written down as numbers get a -1 there; a weight that is joined to the pictures' values, as a
class token is, is repeated for each. What comes out is compared with the file's own answers, one
picture at a time, by `checking`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vitcx.export.foreign.batch_nodes import FixedBatchError, Rewriter, Shape, attribute
from vitcx.export.foreign.graph import Graph, inputs_of
from vitcx.runtime.errors import InputError

# The result has the batch where the inputs have it, counted from the last axis.
_ALIGNED = frozenset(
    {
        "Add", "And", "BiasGelu", "Cast", "Ceil", "Clip", "Cos", "DequantizeLinear", "Div",
        "Dropout", "DynamicQuantizeLinear", "Elu", "Equal", "Erf", "Exp", "FastGelu", "Floor",
        "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf",
        "IsNaN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax",
        "Max", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pad", "Pow", "QuickGelu",
        "QuantizeLinear", "RMSNormalization", "Reciprocal", "Relu", "Resize", "Round", "Sigmoid",
        "Sign", "SimplifiedLayerNormalization", "Sin", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization", "Slice", "Softmax", "Softplus", "Sqrt", "Sub", "Sum",
        "Swish", "Tanh", "Tile", "Where",
    }
)  # fmt: skip
# It has the batch in the same axis as the first input, from the front.
_IN_PLACE = frozenset(
    {
        "Attention", "AveragePool", "BatchNormalization", "Concat", "Conv", "ConvInteger",
        "FusedConv", "GlobalAveragePool", "GlobalMaxPool", "GroupNormalization",
        "InstanceNormalization", "LpNormalization", "MaxPool", "MultiHeadAttention", "Split",
        "DepthToSpace", "SpaceToDepth", "QLinearConv",
    }
)  # fmt: skip
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_REDUCTIONS = "Reduce"
_CONSTANT_SHAPES = frozenset({"Shape", "Size"})


def make_dynamic(
    model: Any, graph: Graph, picture: str, shapes: Mapping[str, Shape], batch: int
) -> dict[str, int]:
    """Rewrite a model in place so that it takes any batch.

    Parameters
    ----------
    model, graph : the model and its index.
    picture : its input.
    shapes : of every value, at the fixed batch.
    batch : the fixed one.

    Returns
    -------
    dict
        How many nodes of each kind were rewritten.

    Raises
    ------
    InputError
        Names the first node that mixes the pictures of a batch, or is of an unknown kind.
    """
    axes: dict[str, int] = {picture: 0}
    rewriter = Rewriter(model, picture, shapes, batch)
    for node in graph.nodes:
        if not any(name in axes for name in inputs_of(node)) or node.op_type in _CONSTANT_SHAPES:
            rewriter.keep(node)
            continue
        try:
            axis = _axis_after(node, axes, shapes)
            rewriter.rewrite(node, axes, axis)
        except FixedBatchError as reason:
            raise InputError(
                f"the graph is written for a batch of {batch}, and its node '{node.name}' "
                f"({node.op_type}) cannot be rewritten for others ({reason}): export the model "
                "again with a dynamic batch (dynamic_axes or dynamic_shapes)"
            ) from None
        for name in node.output:
            if name and len(shapes.get(name, ())) > axis:
                axes[name] = axis
    rewriter.finish()
    return rewriter.counts


def _axis_after(node: Any, axes: Mapping[str, int], shapes: Mapping[str, Shape]) -> int:
    """The axis in which the node's first output has the batch."""
    held = [(name, axes[name]) for name in node.input if name in axes]
    if not held:
        raise FixedBatchError("a branch looks at pictures")
    name, axis = held[0]
    shape, out = shapes[name], shapes.get(node.output[0])
    kind = node.op_type
    if out is None:
        raise FixedBatchError("its result is no array")
    if kind in _ALIGNED:
        from_end = {a - len(shapes[n]) for n, a in held}
        if len(from_end) != 1:
            raise FixedBatchError("it joins values with the batch in other axes")
        return len(out) + from_end.pop()
    if kind in _IN_PLACE:
        if {a for _, a in held} != {axis}:
            raise FixedBatchError("it joins values along the batch")
        if kind in ("Concat", "Split") and attribute(node, "axis", 0) % len(out) == axis:
            raise FixedBatchError("it joins or splits along the batch")
        return axis
    if kind in _RESHAPES:
        return _axis_of_reshape(shape, axis, out)
    if kind == "Transpose":
        perm = attribute(node, "perm", list(range(len(shape)))[::-1])
        return int(list(perm).index(axis))
    if kind in ("Gather", "GatherElements"):
        along = attribute(node, "axis", 0) % len(shape)
        if along == axis or len(held) > 1:
            raise FixedBatchError("it takes pictures out of the batch")
        rank = len(shapes.get(node.input[1], ())) if kind == "Gather" else 1
        return axis if along > axis else axis + rank - 1
    if kind in ("MatMul", "FusedMatMul", "MatMulInteger"):
        return _axis_of_product(held, shapes, node, out)
    if kind in ("Gemm", "FusedGemm"):
        if name != node.input[0] or axis != 0 or attribute(node, "transA", 0):
            raise FixedBatchError("it multiplies along the batch")
        return 0
    if kind == "Einsum":
        return _axis_of_einsum(node, axes, held)
    if kind.startswith(_REDUCTIONS) or kind in ("ArgMax", "ArgMin", "TopK"):
        return _axis_of_reduction(node, axis, shape, out)
    if kind == "Expand":
        return len(out) - len(shape) + axis
    if len(out) == len(shape) and out[axis] == shape[axis]:
        return axis
    raise FixedBatchError("vitcx does not know it")


def _axis_of_reshape(shape: Shape, axis: int, out: Shape) -> int:
    """The first axis behind as many values as lie before the batch."""
    before = math.prod(shape[:axis])
    for place in range(len(out)):
        if math.prod(out[:place]) == before:
            return place
    raise FixedBatchError("it mixes pictures with what lies before them")


def _axis_of_product(
    held: Sequence[tuple[str, int]], shapes: Mapping[str, Shape], node: Any, out: Shape
) -> int:
    places = set()
    for name, axis in held:
        rank = len(shapes[name])
        if rank == 1 or (axis == rank - 1) or (axis == rank - 2 and name == node.input[1]):
            raise FixedBatchError("it multiplies along the batch")
        places.add(len(out) - rank + axis)
    if len(places) != 1:
        raise FixedBatchError("it multiplies pictures with one another")
    return places.pop()


def _axis_of_einsum(node: Any, axes: Mapping[str, int], held: Sequence[tuple[str, int]]) -> int:
    equation = attribute(node, "equation", b"").decode().replace(" ", "")
    left, _, right = equation.partition("->")
    letters = {
        term[axes[name]]
        for term, name in zip(left.split(","), node.input, strict=True)
        if name in axes and "." not in term
    }
    if len(letters) != 1 or "." in equation or right.count(letter := letters.pop()) != 1:
        raise FixedBatchError("it multiplies along the batch")
    return int(right.index(letter))


def _axis_of_reduction(node: Any, axis: int, shape: Shape, out: Shape) -> int:
    if len(out) == len(shape):
        if out[axis] != shape[axis]:
            raise FixedBatchError("it adds up pictures")
        return axis
    reduced = len(shape) - len(out)
    if out[: axis + 1] == shape[: axis + 1]:
        return axis
    if axis - reduced >= 0 and out[axis - reduced :] == shape[axis:]:
        return axis - reduced
    raise FixedBatchError("it adds up pictures")
