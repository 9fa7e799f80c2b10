"""One file of weights for the graphs of a folder: what several of them hold is stored once.

Graphs of one model name a weight as torch happened to; its bytes tell what it is.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vitcx.runtime.manifest import WEIGHTS_NAME

# Smaller ones stay in their graph: shapes and axes, which engines read when they build, and biases.
_LEAST_BYTES = 1024
# Where a weight begins: at a cache line, for whoever maps the file and computes from it.
_ALIGNMENT = 64


def share_weights(folder: Path) -> None:
    """Move the weights of each ``*.onnx`` in `folder` to ``weights.data``, equal ones once.

    Files of weights that the graphs had before are removed.
    """
    paths = sorted(folder.glob("*.onnx"))
    models: list[Any] = [ir.load(path) for path in paths]
    old = {
        folder / weight.const_value.location
        for model in models
        for weight in model.graph.initializers.values()
        if isinstance(weight.const_value, ir.ExternalTensor)
    }
    offsets: dict[tuple[bytes, int], int] = {}
    new = folder / f"{WEIGHTS_NAME}.new"
    with new.open("wb") as file:
        for model in models:
            for weight in model.graph.initializers.values():
                tensor = weight.const_value
                if tensor.nbytes >= _LEAST_BYTES:
                    weight.const_value = _moved(tensor, file, offsets, folder)
                elif isinstance(tensor, ir.ExternalTensor):
                    weight.const_value = ir.Tensor(tensor.numpy().copy(), name=tensor.name)
    for path, model in zip(paths, models, strict=True):
        ir.save(model, path)
    for path in old:
        path.unlink()
    new.replace(folder / WEIGHTS_NAME)


def _moved(tensor: Any, file: Any, offsets: dict[tuple[bytes, int], int], folder: Path) -> Any:
    """A reference to the tensor's bytes in `file`, written if they are new."""
    content = tensor.tobytes()
    key = (hashlib.sha256(content).digest(), len(content))
    if key not in offsets:
        file.write(b"\0" * (-file.tell() % _ALIGNMENT))
        offsets[key] = file.tell()
        file.write(content)
    return ir.ExternalTensor(
        WEIGHTS_NAME,
        offsets[key],
        len(content),
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        base_dir=folder,
    )
