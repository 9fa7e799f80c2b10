"""A bundle for TensorRT 8.6, whose parser ends at opset 17: the same graph in older operators.

    python -m benchmarks.gpu.opset17 vit_base --out vit_base_17

8.6 is the last TensorRT with a whole wheel on PyPI: the one that can be brought to a machine that
has none. Newer in our graphs are Gelu (opset 20), written out with Erf; ReduceMean's axes as an
input (18), an attribute before; and Shape with a start or an end (15), which the parser reads past,
as Shape and Slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.command import Benchmark, finish
from vitcx.runtime.bundle import Bundle, read_bundle, write_manifest
from vitcx.runtime.digests import sha256_of

OPSET, IR_VERSION = 17, 8


def older_graph(model: onnx.ModelProto) -> None:
    """Rewrite the model's graph in place, and say that it is of `OPSET`.

    Raises
    ------
    onnx.checker.ValidationError
        It has other operators that are newer.
    """
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}
    made: list[onnx.NodeProto] = []
    for index, node in enumerate(graph.node):
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        name = f"{node.output[0]}_{OPSET}_{index}"
        if node.op_type == "Gelu" and attributes.get("approximate", b"none") == b"none":
            dtype = helper.tensor_dtype_to_np_dtype(types[node.output[0]])
            made += _gelu(graph, node, name, dtype)
        elif node.op_type == "Shape" and attributes:
            made += _shape(graph, node, name, attributes.get("start", 0), attributes.get("end"))
        elif node.op_type == "ReduceMean" and len(node.input) == 2:
            made.append(_mean(graph, node, attributes.get("keepdims", 1)))
        else:
            made.append(node)
    del graph.node[:]
    graph.node.extend(made)
    del graph.value_info[:]
    model.ir_version = IR_VERSION
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    onnx.checker.check_model(model)


def _gelu(
    graph: onnx.GraphProto, node: onnx.NodeProto, name: str, dtype: np.dtype
) -> Iterator[onnx.NodeProto]:
    """``x (1 + erf(x / sqrt 2)) / 2``."""

    def constant(part: str, value: float) -> str:
        return _constant(graph, f"{name}_{part}", np.array(value, dtype))

    (x,) = node.input
    yield helper.make_node("Mul", [x, constant("scale", math.sqrt(0.5))], [f"{name}_scaled"])
    yield helper.make_node("Erf", [f"{name}_scaled"], [f"{name}_erf"])
    yield helper.make_node("Add", [f"{name}_erf", constant("one", 1)], [f"{name}_sum"])
    yield helper.make_node("Mul", [x, f"{name}_sum"], [f"{name}_twice"])
    yield helper.make_node("Mul", [f"{name}_twice", constant("half", 0.5)], node.output)


def _shape(
    graph: onnx.GraphProto, node: onnx.NodeProto, name: str, start: int, end: int | None
) -> Iterator[onnx.NodeProto]:
    bounds = [start, np.iinfo(np.int32).max if end is None else end, 0]
    parts = [
        _constant(graph, f"{name}_{part}", np.array([value], np.int64))
        for part, value in zip(("start", "end", "axis"), bounds, strict=True)
    ]
    yield helper.make_node("Shape", node.input, [f"{name}_whole"])
    yield helper.make_node("Slice", [f"{name}_whole", *parts], node.output)


def _mean(graph: onnx.GraphProto, node: onnx.NodeProto, keepdims: int) -> onnx.NodeProto:
    whole, named = node.input
    (axes,) = (numpy_helper.to_array(i) for i in graph.initializer if i.name == named)
    return helper.make_node(
        "ReduceMean", [whole], node.output, axes=axes.tolist(), keepdims=keepdims
    )


def _constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def write_older(bundle: Bundle, out: Path) -> Bundle:
    """A copy of the bundle in the folder `out`, which must not be there, with older graphs.

    Each graph holds its own weights, also where the bundle's graphs share a file of them.
    """
    out.mkdir(parents=True)
    graphs = [name for name in bundle.manifest.files if name.endswith(".onnx")]
    for name in graphs:
        model = onnx.load(bundle.path / name)  # with its weights, wherever they lie
        older_graph(model)
        onnx.save(model, out / name)
    files = {name: sha256_of(out / name) for name in graphs}
    write_manifest(out, replace(bundle.manifest, files=files, opset=OPSET))
    return read_bundle(out)


@click.command(cls=Benchmark)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder.")
def main(bundle: Path, out: Path) -> None:
    """Write the bundle of the folder BUNDLE with older graphs."""
    finish({"written": str(write_older(read_bundle(bundle), out).path)}, None)


if __name__ == "__main__":
    main()
