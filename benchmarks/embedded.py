"""The embedded model as a torch module, its weights read back from the bundle's graph.

The gradient and attention methods need torch, and the package carries the model as ONNX only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from tools.demo_model import model as demo_model

# What the exporter puts before the names of the module's parameters.
_PREFIX = "model."


def embedded_module(graph: Path) -> nn.Module:
    """The module of ``model.onnx`` of the bundle 'demo', in evaluation mode.

    Biases and norms keep their names in the graph; the matrix of a linear layer is nameless and
    transposed, and is the other operand of the product that its bias is added to.
    """
    proto = onnx.load(graph).graph
    stored = {i.name: numpy_helper.to_array(i) for i in proto.initializer}
    weights = {n.removeprefix(_PREFIX): v for n, v in stored.items() if n.startswith(_PREFIX)}
    products = {
        node.output[0]: stored[node.input[1]]
        for node in proto.node
        if node.op_type == "MatMul" and node.input[1] in stored
    }
    for node in proto.node:
        if node.op_type == "Add":
            named = [n for n in node.input if n.startswith(_PREFIX) and n.endswith(".bias")]
            matrix = [products[n] for n in node.input if n in products]
            if named and matrix:
                name = named[0].removeprefix(_PREFIX).removesuffix("bias") + "weight"
                weights[name] = matrix[0].T
    module = demo_model.build()
    module.load_state_dict(
        {name: torch.from_numpy(np.array(w, order="C")) for name, w in weights.items()}
    )
    return module.eval()
