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

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vitcx.export.foreign.graph import Graph, inputs_of
from vitcx.export.foreign.normal_form import WEIGHTS, add_constant
from vitcx.runtime.errors import InputError

Shape = tuple[int, ...]

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


class _FixedBatchError(Exception):
    """Why a node keeps the batch as it is."""


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
    rewriter = _Rewriter(model, picture, shapes, batch)
    for node in graph.nodes:
        if not any(name in axes for name in inputs_of(node)) or node.op_type in _CONSTANT_SHAPES:
            rewriter.keep(node)
            continue
        try:
            axis = _axis_after(node, axes, shapes)
            rewriter.rewrite(node, axes, axis)
        except _FixedBatchError as reason:
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
        raise _FixedBatchError("a branch looks at pictures")
    name, axis = held[0]
    shape, out = shapes[name], shapes.get(node.output[0])
    kind = node.op_type
    if out is None:
        raise _FixedBatchError("its result is no array")
    if kind in _ALIGNED:
        from_end = {a - len(shapes[n]) for n, a in held}
        if len(from_end) != 1:
            raise _FixedBatchError("it joins values with the batch in other axes")
        return len(out) + from_end.pop()
    if kind in _IN_PLACE:
        if {a for _, a in held} != {axis}:
            raise _FixedBatchError("it joins values along the batch")
        if kind in ("Concat", "Split") and _attribute(node, "axis", 0) % len(out) == axis:
            raise _FixedBatchError("it joins or splits along the batch")
        return axis
    if kind in _RESHAPES:
        return _axis_of_reshape(shape, axis, out)
    if kind == "Transpose":
        perm = _attribute(node, "perm", list(range(len(shape)))[::-1])
        return list(perm).index(axis)
    if kind in ("Gather", "GatherElements"):
        along = _attribute(node, "axis", 0) % len(shape)
        if along == axis or len(held) > 1:
            raise _FixedBatchError("it takes pictures out of the batch")
        rank = len(shapes.get(node.input[1], ())) if kind == "Gather" else 1
        return axis if along > axis else axis + rank - 1
    if kind in ("MatMul", "FusedMatMul", "MatMulInteger"):
        return _axis_of_product(held, shapes, node, out)
    if kind in ("Gemm", "FusedGemm"):
        if name != node.input[0] or axis != 0 or _attribute(node, "transA", 0):
            raise _FixedBatchError("it multiplies along the batch")
        return 0
    if kind == "Einsum":
        return _axis_of_einsum(node, axes, held)
    if kind.startswith(_REDUCTIONS) or kind in ("ArgMax", "ArgMin", "TopK"):
        return _axis_of_reduction(node, axis, shape, out)
    if kind == "Expand":
        return len(out) - len(shape) + axis
    if len(out) == len(shape) and out[axis] == shape[axis]:
        return axis
    raise _FixedBatchError("vitcx does not know it")


def _axis_of_reshape(shape: Shape, axis: int, out: Shape) -> int:
    """The first axis behind as many values as lie before the batch."""
    before = math.prod(shape[:axis])
    for place in range(len(out)):
        if math.prod(out[:place]) == before:
            return place
    raise _FixedBatchError("it mixes pictures with what lies before them")


def _axis_of_product(
    held: Sequence[tuple[str, int]], shapes: Mapping[str, Shape], node: Any, out: Shape
) -> int:
    places = set()
    for name, axis in held:
        rank = len(shapes[name])
        if rank == 1 or (axis == rank - 1) or (axis == rank - 2 and name == node.input[1]):
            raise _FixedBatchError("it multiplies along the batch")
        places.add(len(out) - rank + axis)
    if len(places) != 1:
        raise _FixedBatchError("it multiplies pictures with one another")
    return places.pop()


def _axis_of_einsum(
    node: Any, axes: Mapping[str, int], held: Sequence[tuple[str, int]]
) -> int:
    equation = _attribute(node, "equation", b"").decode().replace(" ", "")
    left, _, right = equation.partition("->")
    letters = {
        term[axes[name]]
        for term, name in zip(left.split(","), node.input, strict=True)
        if name in axes and "." not in term
    }
    if len(letters) != 1 or "." in equation or right.count(letter := letters.pop()) != 1:
        raise _FixedBatchError("it multiplies along the batch")
    return right.index(letter)


def _axis_of_reduction(node: Any, axis: int, shape: Shape, out: Shape) -> int:
    if len(out) == len(shape):
        if out[axis] != shape[axis]:
            raise _FixedBatchError("it adds up pictures")
        return axis
    reduced = len(shape) - len(out)
    if out[: axis + 1] == shape[: axis + 1]:
        return axis
    if axis - reduced >= 0 and out[axis - reduced :] == shape[axis:]:
        return axis - reduced
    raise _FixedBatchError("it adds up pictures")


class _Rewriter:
    """The nodes of the new graph, as they come."""

    def __init__(self, model: Any, picture: str, shapes: Mapping[str, Shape], batch: int) -> None:
        self.counts: dict[str, int] = {}
        self._model, self._graph, self._shapes = model, model.graph, shapes
        self._batch = batch
        self._weights = {weight.name: weight for weight in model.graph.initializer}
        self._count = "vitcx.batch"
        self._number = 0
        size = self._name("sizes")
        start = add_constant(self._graph, self._name("start"), np.array([0], np.int64))
        end = add_constant(self._graph, self._name("end"), np.array([1], np.int64))
        self._nodes = [
            helper.make_node("Shape", [picture], [size], name=size),
            helper.make_node("Slice", [size, start, end], [self._count], name=self._count),
        ]

    def keep(self, node: Any) -> None:
        self._nodes.append(_copy(node))

    def rewrite(self, node: Any, axes: Mapping[str, int], axis: int) -> None:
        """Add the node, with its written sizes and weights made for any batch."""
        node = _copy(node)
        out = self._shapes[node.output[0]]
        if node.op_type == "Reshape":
            sizes = list(out)
            sizes[axis] = -1
            node.input[1] = self._constant(np.array(sizes, np.int64))
            for attribute in [a for a in node.attribute if a.name == "allowzero"]:
                node.attribute.remove(attribute)
        elif node.op_type == "Flatten" and axis != 0:
            raise _FixedBatchError("it joins pictures with what lies before them")
        elif node.op_type == "Expand":
            node.input[1] = self._sizes(out, axis)
        elif node.op_type == "Concat":
            for place, name in enumerate(node.input):
                if name not in axes:
                    node.input[place] = self._repeated(name, axis)
        elif node.op_type == "Resize" and len(node.input) > 3 and node.input[3]:
            raise _FixedBatchError("its sizes are written down")
        elif node.op_type == "Slice" and axis in self._sliced(node, len(out)):
            raise _FixedBatchError("it takes pictures out of the batch")
        elif node.op_type == "Squeeze" and len(node.input) < 2:
            wanted = _attribute(node, "axes", None)
            if wanted is None:
                raise _FixedBatchError("it does not say which axes it drops")
        else:
            self._nodes.append(node)
            return
        self.counts[node.op_type] = self.counts.get(node.op_type, 0) + 1
        self._nodes.append(node)

    def finish(self) -> None:
        """Put the nodes into the model, and call the batch dynamic."""
        del self._graph.node[:], self._graph.value_info[:]
        self._graph.node.extend(self._nodes)
        for value in (*self._graph.input, *self._graph.output):
            free_batch(value)

    def _repeated(self, name: str, axis: int) -> str:
        """A weight, or a value made of weights, once for each picture."""
        shape = self._shapes.get(name)
        if shape is None and name in self._weights:
            shape = tuple(self._weights[name].dims)
        if shape is None or shape[axis] != 1:
            if self._batch == 1 or shape is None or shape[axis] != self._batch:
                raise _FixedBatchError("it joins the pictures with a value of unknown size")
            name = self._first(name, axis)
        repeated = self._name("repeated")
        sizes = self._sizes(shape, axis)
        self._nodes.append(helper.make_node("Expand", [name, sizes], [repeated], name=repeated))
        return repeated

    def _first(self, name: str, axis: int) -> str:
        """Of a weight that holds the same for each picture of the fixed batch, that of one."""
        weight = self._weights.get(name)
        if weight is None or weight.data_location == onnx.TensorProto.EXTERNAL:
            raise _FixedBatchError(f"it joins them with a value of {WEIGHTS}")
        values = np.moveaxis(numpy_helper.to_array(weight), axis, 0)
        if not (values == values[:1]).all():
            raise _FixedBatchError("it joins each picture with other weights")
        return self._constant(np.moveaxis(values[:1], 0, axis))

    def _sizes(self, shape: Shape, axis: int) -> str:
        """A shape with the batch in place of the size of `axis`."""
        parts = [self._count]
        if shape[:axis]:
            parts.insert(0, self._constant(np.array(shape[:axis], np.int64)))
        if shape[axis + 1 :]:
            parts.append(self._constant(np.array(shape[axis + 1 :], np.int64)))
        name = self._name("sizes")
        self._nodes.append(helper.make_node("Concat", parts, [name], name=name, axis=0))
        return name

    def _sliced(self, node: Any, rank: int) -> set[int]:
        if len(node.input) < 4 or not node.input[3]:
            return set(range(rank)) if len(node.input) < 4 else set()
        weight = self._weights.get(node.input[3])
        if weight is None:
            raise _FixedBatchError("its axes are computed")
        return {int(axis) % rank for axis in numpy_helper.to_array(weight).reshape(-1)}

    def _constant(self, values: Any) -> str:
        return add_constant(self._graph, self._name("sizes"), values)

    def _name(self, what: str) -> str:
        self._number += 1
        return f"vitcx.{what}.{self._number}"


def free_batch(value: Any) -> None:
    """Call the first axis of an input or output dynamic."""
    shape = value.type.tensor_type.shape
    if shape.dim:
        shape.dim[0].Clear()
        shape.dim[0].dim_param = "batch"


def _copy(node: Any) -> Any:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _attribute(node: Any, name: str, default: Any) -> Any:
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)
