"""Nodes rewritten for any batch: sizes that are written down, and weights joined to pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vitcx.export.foreign.normal_form import add_constant

Shape = tuple[int, ...]


class FixedBatchError(Exception):
    """Why a node keeps the batch as it is."""


class Rewriter:
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
            for flag in [a for a in node.attribute if a.name == "allowzero"]:
                node.attribute.remove(flag)
        elif node.op_type == "Flatten" and axis != 0:
            raise FixedBatchError("it joins pictures with what lies before them")
        elif node.op_type == "Expand":
            if self._shapes[node.input[0]][axis - len(out)] != out[axis]:
                raise FixedBatchError("it repeats the pictures")
            # What is expanded has the batch already, or windows of it: a 1 keeps them all.
            sizes = [1 if place == axis else size for place, size in enumerate(out)]
            node.input[1] = self._constant(np.array(sizes, np.int64))
        elif node.op_type == "Concat":
            for place, name in enumerate(node.input):
                if name not in axes:
                    node.input[place] = self._repeated(name, axis)
        elif node.op_type == "Resize" and len(node.input) > 3 and node.input[3]:
            raise FixedBatchError("its sizes are written down")
        elif node.op_type == "Slice" and axis in self._sliced(node, len(out)):
            raise FixedBatchError("it takes pictures out of the batch")
        elif node.op_type == "Squeeze" and len(node.input) < 2:
            wanted = attribute(node, "axes", None)
            if wanted is None:
                raise FixedBatchError("it does not say which axes it drops")
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
                raise FixedBatchError("it joins the pictures with a value of unknown size")
            name = self._first(name, axis)
        repeated = self._name("repeated")
        sizes = self._sizes(shape, axis)
        self._nodes.append(helper.make_node("Expand", [name, sizes], [repeated], name=repeated))
        return repeated

    def _first(self, name: str, axis: int) -> str:
        """Of a weight that holds the same for each picture of the fixed batch, that of one."""
        weight = self._weights.get(name)
        if weight is None or weight.data_location == onnx.TensorProto.EXTERNAL:
            raise FixedBatchError("it joins the pictures with large weights, one for each")
        values = np.moveaxis(numpy_helper.to_array(weight), axis, 0)
        if not (values == values[:1]).all():
            raise FixedBatchError("it joins each picture with other weights")
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
            raise FixedBatchError("its axes are computed")
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


def attribute(node: Any, name: str, default: Any) -> Any:
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)
