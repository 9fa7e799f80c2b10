"""Brings a graph into one form: no functions, no Constant nodes, float32, large weights in a file.

Half precision becomes float32, with the same weights. ONNX Runtime's CPU provider computes so
anyway, and clusters of masks are cut at a threshold: an embedding that is off by a little can give
other masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

from vitcx.export.foreign.reading import external_place, nodes_of, tensors_of
from vitcx.runtime.errors import InputError

WEIGHTS = "graph.weights"
# Smaller ones stay in the graph: shapes and axes are among them.
_LEAST_BYTES = 1024
_ALIGNMENT = 64
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# Attributes that name an element type.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type", "softmax_precision")
_LIST_KINDS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def normalise(model: Any, path: Path, scratch: Path) -> tuple[Any, bool]:
    """The model in that form, and whether it was in half precision.

    Parameters
    ----------
    model : read from `path`; changed.
    scratch : folder that gets the file `WEIGHTS`.

    Raises
    ------
    InputError
        If its functions cannot be taken apart, or weights are NaN.
    """
    halved = _externalise(model, path, scratch)
    if model.functions:
        try:
            model = inline_local_functions(model)
        except Exception as error:  # onnx raises what its C++ does
            reason = (str(error).strip().splitlines() or [""])[0]
            raise InputError(f"the functions of '{path}' cannot be taken apart: {reason}") from None
    graph = model.graph
    if halved:
        _use_float32(graph)
    _constants_to_initializers(graph)
    names = {weight.name for weight in graph.initializer}
    pictures = [value for value in graph.input if value.name not in names]
    del graph.input[:], graph.value_info[:], graph.quantization_annotation[:]
    graph.input.extend(pictures)
    _drop_notes(model)
    return model, halved


def add_constant(graph: Any, name: str, values: Any) -> str:
    """Give the graph a weight of that name."""
    graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name


def _externalise(model: Any, path: Path, scratch: Path) -> bool:
    """Move large weights to the file, in float32; whether some were in half precision."""
    halved = False
    # Within branches they stay: ONNX Runtime looks for files at the top only.
    movable = {id(tensor) for tensor in _tensors_at_the_top(model)}
    with (scratch / WEIGHTS).open("wb") as file:
        for tensor in tensors_of(model):
            halved |= tensor.data_type in _HALVES
            array = _values(tensor, path)
            if array.dtype.kind == "f" and np.isnan(array).any():
                raise InputError(
                    f"the weight '{tensor.name}' of '{path}' holds NaN: the file is damaged, or "
                    "the model's training diverged"
                )
            if tensor.data_type in _HALVES or array.dtype.kind in "fiub":
                _store(tensor, array, file if id(tensor) in movable else None)
    return halved


def _tensors_at_the_top(model: Any) -> Iterator[Any]:
    yield from model.graph.initializer
    for owner in (model.graph, *model.functions):
        for node in owner.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                yield node.attribute[0].t


def _values(tensor: Any, path: Path) -> np.ndarray[Any, Any]:
    if tensor.data_location == TensorProto.EXTERNAL:
        place, offset, length = external_place(tensor, path)
        with place.open("rb") as file:
            file.seek(offset)
            content = file.read(length)
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT
        tensor.raw_data = content
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise InputError(f"the weight '{tensor.name}' cannot be read: {error}") from None
    return array.astype(np.float32) if tensor.data_type in _HALVES else array


def _store(tensor: Any, array: np.ndarray[Any, Any], file: BinaryIO | None) -> None:
    """Put an array into a tensor; into the file, if there is one and the array is large."""
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    if file is None or array.nbytes < _LEAST_BYTES:
        return
    file.write(b"\0" * (-file.tell() % _ALIGNMENT))
    place = {"location": WEIGHTS, "offset": file.tell(), "length": len(tensor.raw_data)}
    file.write(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def _use_float32(graph: Any) -> None:
    """Let every node and value of half precision be of float32; the tensors are already."""
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type in _HALVES:
            kind.elem_type = TensorProto.FLOAT
    for node in nodes_of(graph):
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in _HALVES:
                attribute.i = TensorProto.FLOAT


def _constants_to_initializers(graph: Any) -> None:
    kept = []
    for node in graph.node:
        tensor = _constant(node) if node.op_type == "Constant" else None
        if tensor is None:
            kept.append(node)
            continue
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)


def _constant(node: Any) -> Any:
    """The tensor that a Constant node gives; None if it is of another kind."""
    attribute = node.attribute[0]
    if attribute.name == "value":
        copy = TensorProto()
        copy.CopyFrom(attribute.t)
        return copy
    if attribute.name in _LIST_KINDS:
        value = helper.get_attribute_value(attribute)
        return numpy_helper.from_array(np.asarray(value, _LIST_KINDS[attribute.name]))
    return None


def _drop_notes(model: Any) -> None:
    """Take out what a program noted in the file: texts, and paths of somebody's machine."""
    del model.metadata_props[:]
    model.doc_string = ""
    model.graph.doc_string = ""
    for item in (*nodes_of(model.graph), *model.graph.input, *model.graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
