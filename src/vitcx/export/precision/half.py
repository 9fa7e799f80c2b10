"""Rewrites a float32 ONNX graph in float16 or bfloat16.

The pass is our own, over onnx_ir's graph. ONNX Runtime's converter was tried first: it has no
bfloat16, it rounds the probabilities to float16 before it hands them out as float32, and its nodes
come unsorted. Here every node that takes float32 runs in the 16-bit type, `kept_nodes` excepted,
and casts stand where the two meet. Of an `Attention` node the softmax's precision is the engine's
choice: TensorRT's parser refuses a graph that asks for one.

ONNX Runtime's CPU provider cannot say what such a graph gives elsewhere: it has no bfloat16
arithmetic, and of a float16 graph it drops the casts, ours too, so that only the weights
are rounded. Hence `write_rounded`: the same graph in float32, in which the result of each 16-bit
node is rounded, as on a device that adds up in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from vitcx.export.graph.to_onnx import save_graph
from vitcx.export.precision.kept_nodes import KEPT_OPS, MOVES, classifier_nodes, layout_nodes
from vitcx.runtime.errors import InputError

_DTYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
_FLOAT = ir.DataType.FLOAT
# Conv takes bfloat16 from this opset on. Before, the patch projection stays in float32.
_BFLOAT16_CONV_OPSET = 22


def write_half(source: Path, target: Path, precision: str) -> None:
    """Write the float32 graph at `source` in `precision` ("fp16" or "bf16") to `target`.

    The graph's inputs and outputs stay float32.

    Raises
    ------
    InputError
        For a graph with branches or loops.
    """
    model = ir.load(source)
    graph, dtype = model.graph, _DTYPES[precision]
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    if any(attribute.type in kinds for n in graph for attribute in n.attributes.values()):
        raise InputError(f"a graph with branches or loops cannot become {precision}: use fp32")
    low = _low_nodes(model, precision)
    _convert(graph, low, dtype)
    _finish(model)
    save_graph(model, target)


def write_rounded(source: Path, target: Path) -> None:
    """Write a float32 graph to `target` that gives what the 16-bit graph at `source` gives."""
    model = ir.load(source)
    graph = model.graph
    types = {ir.DataType.from_numpy(dtype) for dtype in _DTYPES.values()}
    for weight in list(graph.initializers.values()):
        if weight.dtype in types:
            _replace(weight, _add_weight(graph, weight, np.dtype(np.float32), _FLOAT))
    for node in list(graph):
        for output in node.outputs:
            if output.dtype not in types:
                continue
            low, uses = output.dtype, list(output.uses())
            if node.op_type == "Cast":
                rounded = output
            else:
                output.dtype = _FLOAT
                if node.op_type in MOVES:
                    continue
                rounded = _add_cast(graph, output, low)
            back = _add_cast(graph, rounded, _FLOAT)
            for use in uses:
                use.node.replace_input_with(use.idx, back)
    _finish(model)
    save_graph(model, target)


def _low_nodes(model: Any, precision: str) -> list[Any]:
    """The nodes that are to run in 16 bits."""
    graph = model.graph
    kept = classifier_nodes(graph) | layout_nodes(graph)
    ops = set(KEPT_OPS)
    if precision == "bf16" and model.opset_imports[""] < _BFLOAT16_CONV_OPSET:
        ops.add("Conv")
    return [
        node
        for node in graph
        if node.op_type not in ops
        and node not in kept
        and any(value is not None and value.dtype == _FLOAT for value in node.inputs)
    ]


def _convert(graph: Any, nodes: list[Any], dtype: np.dtype[Any]) -> None:
    """Give `nodes` the 16-bit type, with casts where they meet the others."""
    low, low_type = set(nodes), ir.DataType.from_numpy(dtype)
    made: dict[Any, Any] = {}  # 16-bit weights and casts, by the value that they were made of

    def in_type(value: Any, wanted: Any) -> Any:
        if value not in made:
            weight = value.is_initializer() and not value.is_graph_input()
            made[value] = (
                _add_weight(graph, value, dtype, low_type)
                if weight
                else _add_cast(graph, value, wanted)
            )
        return made[value]

    for node in list(graph):
        wanted, other = (low_type, _FLOAT) if node in low else (_FLOAT, low_type)
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype == other:
                node.replace_input_with(i, in_type(value, wanted))
        if node in low:
            for output in node.outputs:
                if output.dtype == _FLOAT:
                    output.dtype = low_type
    for i, output in enumerate(graph.outputs):
        if output.dtype == low_type:
            name, output.name = output.name, f"{output.name}_{low_type.name.lower()}"
            graph.outputs[i] = _add_cast(graph, output, _FLOAT)
            graph.outputs[i].name = name


def _add_cast(graph: Any, value: Any, dtype: Any) -> Any:
    """A cast of `value`, at the graph's end: `_finish` sorts."""
    node = ir.node("Cast", [value], {"to": dtype}, name=f"{value.name}_to_{dtype.name.lower()}")
    output = node.outputs[0]
    output.name, output.dtype, output.shape = f"{node.name}_value", dtype, value.shape
    graph.append(node)
    return output


def _add_weight(graph: Any, weight: Any, dtype: np.dtype[Any], kind: Any) -> Any:
    """A copy of a weight in another type; what float16 cannot hold becomes its largest value."""
    array = weight.const_value.numpy()
    if dtype == np.float16:
        largest = np.finfo(np.float16).max
        array = np.clip(array, -largest, largest)
    name = f"{weight.name}_{kind.name.lower()}"
    value = ir.Value(
        name=name,
        type=ir.TensorType(kind),
        shape=weight.shape,
        const_value=ir.tensor(array.astype(dtype), name=name),
    )
    graph.register_initializer(value)
    return value


def _replace(value: Any, other: Any) -> None:
    for use in list(value.uses()):
        use.node.replace_input_with(use.idx, other)


def _finish(model: Any) -> None:
    """Sort the nodes and drop the weights that nothing uses any more."""
    for name, weight in list(model.graph.initializers.items()):
        if not weight.uses():
            del model.graph.initializers[name]
    TopologicalSortPass()(model)
