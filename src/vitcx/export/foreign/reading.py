"""Reads an ONNX file that may come from anybody: bounded, and weights only from beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from vitcx.runtime.errors import InputError
from vitcx.runtime.plain_files import open_plain

MAX_GRAPH_BYTES = (1 << 31) - 1  # of a protobuf message
MAX_NODES = 100_000
LEAST_OPSET, MOST_OPSET = 11, 26
# ONNX's own operators, under both of their names, and those of ONNX Runtime.
_DOMAINS = ("", "ai.onnx", "com.microsoft")
_ONNX_DOMAINS = ("", "ai.onnx")
# They can run for ever.
_LOOPS = ("Loop", "Scan")
_LFS = b"version https://git-lfs"
_MOST_NESTING = 4


def read_graph(path: Path) -> Any:
    """The model in an ONNX file, its external weights not read yet but known to be there.

    Parameters
    ----------
    path : of the file.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    InputError
        It is no ONNX file, not whole, or one of a kind that cannot become a bundle.
    """
    if "://" in str(path) or str(path).startswith(("http:", "https:")):
        raise InputError(f"'{path}' is an address: download the file and give its path")
    try:
        with open_plain(path) as file:
            content = file.read(MAX_GRAPH_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"no ONNX file at '{path}'") from None
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from None
    if len(content) > MAX_GRAPH_BYTES:
        raise InputError(
            f"'{path}' is larger than an ONNX file can be (2 GiB): save its weights beside it "
            "(onnx.save with save_as_external_data=True)"
        )
    if content.startswith(_LFS):
        raise InputError(f"'{path}' is a pointer of Git LFS: fetch the file with  git lfs pull")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise InputError(
            f"'{path}' is not an ONNX file, or it is cut off ({len(content)} bytes)"
        ) from None
    if not model.graph.node or not model.graph.output:
        raise InputError(f"'{path}' holds no graph: it is no ONNX file of a model")
    _check_operators(model, path)
    for tensor in tensors_of(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            external_place(tensor, path)
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != _bytes_of(tensor):
            raise InputError(
                f"the weight '{tensor.name}' of '{path}' has another size than it says"
            )
    return model


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators that a model uses."""
    return max((o.version for o in model.opset_import if o.domain in _ONNX_DOMAINS), default=0)


def nodes_of(owner: Any, depth: int = 0) -> Iterator[Any]:
    """All nodes of a graph or function, also within branches."""
    for node in owner.node:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                if graph.node:
                    if depth == _MOST_NESTING:
                        raise InputError("the graph has branches within branches within branches")
                    yield from nodes_of(graph, depth + 1)


def tensors_of(model: Any) -> Iterator[Any]:
    """All tensors that a model holds: initializers, and constants wherever they are."""
    graphs = [model.graph]
    for owner in (model.graph, *model.functions):
        for node in nodes_of(owner):
            for attribute in node.attribute:
                yield from attribute.tensors
                if attribute.HasField("t"):
                    yield attribute.t
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs
    for graph in graphs:
        yield from graph.initializer


def external_place(tensor: Any, path: Path) -> tuple[Path, int, int]:
    """File, offset and length of a weight that is kept beside the graph at `path`.

    Raises
    ------
    InputError
        It is not in the folder of the graph, or is not there whole.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "")
    refusal = f"'{path}' keeps weights in {name[:100]!r}, which is not a file in its folder"
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(refusal)
    file = path.parent / name
    # A cache of models keeps links to files that lie side by side.
    homes = {path.parent.resolve(), path.resolve().parent}
    try:
        real = file.resolve()
        if not any(home in real.parents for home in homes) or not real.is_file():
            raise InputError(refusal)
        offset = int(entries.get("offset", 0))
        expected = _bytes_of(tensor)
        length = int(entries.get("length", expected))
        size = real.stat().st_size
    except (OSError, ValueError) as error:
        raise error if isinstance(error, InputError) else InputError(refusal) from None
    if offset < 0 or length != expected or offset + length > size:
        raise InputError(
            f"the weight '{tensor.name}' is not whole: it needs {expected} bytes at {offset} of "
            f"'{file}', which has {size}"
        )
    return real, offset, length


def _bytes_of(tensor: Any) -> int:
    if any(size < 0 for size in tensor.dims):
        raise InputError(f"the weight '{tensor.name}' has a negative size")
    count = int(np.prod([int(size) for size in tensor.dims], dtype=object)) if tensor.dims else 1
    kind = tensor.data_type
    if kind in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return (count + 1) // 2
    try:
        return count * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except (KeyError, TypeError):
        raise InputError(f"the weight '{tensor.name}' is of an unknown kind ({kind})") from None


def _check_operators(model: Any, path: Path) -> None:
    opset = opset_of(model)
    if not LEAST_OPSET <= opset <= MOST_OPSET:
        raise InputError(
            f"'{path}' uses opset {opset}, expected {LEAST_OPSET} to {MOST_OPSET}: export the "
            "model again with another opset_version"
        )
    own = {function.domain for function in model.functions}
    count = 0
    for owner in (model.graph, *model.functions):
        for node in nodes_of(owner):
            count += 1
            if node.domain not in _DOMAINS and node.domain not in own:
                raise InputError(
                    f"'{path}' has operators of '{node.domain}' ({node.op_type}), which ONNX "
                    "Runtime does not have: export the model without them"
                )
            if node.op_type in _LOOPS:
                raise InputError(
                    f"'{path}' has a loop ({node.op_type} '{node.name}'): export the model "
                    "without loops"
                )
    if count > MAX_NODES:
        raise InputError(f"'{path}' has {count} nodes, expected {MAX_NODES} at most")
