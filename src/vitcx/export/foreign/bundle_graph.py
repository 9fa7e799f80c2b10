"""Makes the bundle's graph of a file's: its input, its two outputs, and what they need.

All added operators are the same in every opset from 11 on.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from vitcx.export.foreign.graph import inputs_of, needed_nodes
from vitcx.export.foreign.head import Answers, Head
from vitcx.export.foreign.normal_form import WEIGHTS, add_constant
from vitcx.export.foreign.picture_input import PictureInput
from vitcx.export.foreign.places import Place
from vitcx.export.foreign.reading import nodes_of
from vitcx.runtime.manifest import EMBEDDING, INPUT, PROBABILITIES, WEIGHTS_NAME

_OURS = (INPUT, PROBABILITIES, EMBEDDING)
# As of the exported graphs: a protobuf file ends at 2 GiB.
_ONE_FILE_BYTES = 2_000_000_000


def build(
    model: Any,
    source: PictureInput,
    size: tuple[int, int],
    place: Place,
    answers: Answers,
    head: Head,
    *,
    cut: bool,
) -> Any:
    """The bundle's graph.

    Parameters
    ----------
    model : of a dynamic batch; not changed.
    source, size : its input, and (H, W) of the pictures.
    place, answers, head : its embedding and its answers, and what makes scores of them.
    cut : begin behind the graph's own scaling of pictures.

    Returns
    -------
    onnx.ModelProto
    """
    built = onnx.ModelProto()
    built.CopyFrom(model)
    graph = built.graph
    start = source.scaled if cut else source.name
    order = source.order if cut else ((0, 2, 3, 1) if source.channels_last else (0, 1, 2, 3))
    nodes = list(graph.node)
    names = {start: "vitcx.start", **{name: f"{name}_inner" for name in _OURS}}
    taken = {name for node in nodes_of(graph) for name in (*node.input, *node.output)}
    while taken.intersection(names.values()):
        names = {name: f"{new}_" for name, new in names.items()}
    value, answer = (names.get(name, name) for name in (place.value, answers.value))
    if cut and source.scaled != source.name:
        nodes = [node for node in nodes if start not in node.output]
        # What else looks at the input wants its shape.
        names[source.name] = f"{names[start]}.input"
    _rename(graph, names)

    head_nodes = [_laid_out(INPUT, names[start], order)]
    if cut and source.scaled != source.name:
        axes = (0, 2, 3, 1) if source.channels_last else (0, 1, 2, 3)
        head_nodes.append(_laid_out(INPUT, names[source.name], axes))
    del graph.node[:]
    graph.node.extend(head_nodes + nodes)
    _add_embedding(graph, value, place)
    flat = "vitcx.answers"
    shape = add_constant(graph, f"{flat}.shape", np.array([-1, answers.count], np.int64))
    graph.node.append(
        helper.make_node("Reshape", [answer, shape], [f"{flat}.raw"], name=f"{flat}.raw")
    )
    graph.node.append(
        helper.make_node("Cast", [f"{flat}.raw"], [flat], name=flat, to=TensorProto.FLOAT)
    )
    head.add_nodes(graph, flat, PROBABILITIES)
    _set_interface(graph, source.channels, size, place, len(head.default_names))
    _prune(graph)
    return built


def save(model: Any, scratch: Path, path: Path) -> None:
    """Write a graph whose large weights lie in `scratch`: in one file with them where they fit."""
    external = [w for w in model.graph.initializer if w.data_location == TensorProto.EXTERNAL]
    places = {w.name: {e.key: e.value for e in w.external_data} for w in external}
    large = sum(int(p["length"]) for p in places.values()) > _ONE_FILE_BYTES
    beside = (path.parent / WEIGHTS_NAME).open("wb") if large else None
    with (scratch / WEIGHTS).open("rb") as file:
        for weight in external:
            file.seek(int(places[weight.name]["offset"]))
            content = file.read(int(places[weight.name]["length"]))
            del weight.external_data[:]
            if beside is None:
                weight.data_location = TensorProto.DEFAULT
                weight.raw_data = content
                continue
            beside.write(b"\0" * (-beside.tell() % 64))
            entries = {"location": WEIGHTS_NAME, "offset": beside.tell(), "length": len(content)}
            for key, value in entries.items():
                weight.external_data.add(key=key, value=str(value))
            beside.write(content)
    if beside is not None:
        beside.close()
    onnx.save(model, path)


def _laid_out(value: str, result: str, order: tuple[int, ...]) -> Any:
    """A node that gives a picture (B,channels,H,W) with its axes in another order."""
    if order == (0, 1, 2, 3):
        return helper.make_node("Identity", [value], [result], name=result)
    return helper.make_node("Transpose", [value], [result], name=result, perm=order)


def _rename(graph: Any, names: dict[str, str]) -> None:
    for node in nodes_of(graph):
        for part in (node.input, node.output):
            for place, name in enumerate(part):
                if name in names:
                    part[place] = names[name]
        for attribute in node.attribute:
            for branch in (attribute.g, *attribute.graphs):
                for value in branch.output:
                    value.name = names.get(value.name, value.name)
    for weight in graph.initializer:
        weight.name = names.get(weight.name, weight.name)


def _add_embedding(graph: Any, value: str, place: Place) -> None:
    """Add what lays the embedding out as (B,D,h,w) float32."""

    def add(op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"vitcx.embedding.{len(graph.node)}"
        graph.node.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def sizes(*values: int) -> str:
        name = f"vitcx.embedding.sizes.{len(graph.initializer)}"
        return add_constant(graph, name, np.array(values, np.int64))

    if place.layout in ("BND", "NBD"):
        if place.layout == "NBD":
            value = add("Transpose", value, perm=[1, 0, 2])
        count = math.prod(place.grid)
        value = add("Slice", value, sizes(place.prefix), sizes(place.prefix + count), sizes(1))
        value = add("Transpose", value, perm=[0, 2, 1])
        value = add("Reshape", value, sizes(-1, place.channels, *place.grid))
    elif place.layout == "BHWD":
        value = add("Transpose", value, perm=[0, 3, 1, 2])
    add("Cast", value, name=EMBEDDING, to=TensorProto.FLOAT)


def _set_interface(
    graph: Any, channels: int, size: tuple[int, int], place: Place, targets: int
) -> None:
    def info(name: str, *sizes: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *sizes])

    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.append(info(INPUT, channels, *size))
    graph.output.append(info(PROBABILITIES, targets))
    graph.output.append(info(EMBEDDING, place.channels, *place.grid))


def _prune(graph: Any) -> None:
    """Take out nodes and weights that nothing needs."""
    kept = [
        onnx.NodeProto.FromString(node.SerializeToString())
        for node in needed_nodes(list(graph.node), [output.name for output in graph.output])
    ]
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in inputs_of(node)}
    weights = [w for w in graph.initializer if w.name in used]
    copies = [TensorProto.FromString(w.SerializeToString()) for w in weights]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def foreign_operators(model: Any) -> list[str]:
    """The graph's operators that ONNX Runtime alone has."""
    return sorted({n.op_type for n in nodes_of(model.graph) if n.domain == "com.microsoft"})
