"""Quantises the weights of a float32 ONNX graph to int8, with ONNX Runtime's own quantiser.

The linear layers' weights become signed 8-bit integers, a scale for each output channel;
activations are quantised as they come, a scale for each tensor. So the rows of a batch share a
scale, and a row's result depends a little on its neighbours. Products of two activations (the
attention itself), normalisations, softmaxes, the patch convolution, the first block and the
classifier stay in float32. The graph runs on ONNX Runtime's CPU provider; TensorRT wants another
form of int8.
"""

from __future__ import annotations

import os
from pathlib import Path

import onnx_ir as ir

from vitcx.export.graph.to_onnx import is_large
from vitcx.export.precision.kept_nodes import classifier_nodes, first_linears
from vitcx.export.quiet import only_errors_from

# The first block: its qkv, projection and two of the MLP. It turns pixels into the large
# activations that the others then carry. On DeiT-Tiny its four linear layers alone make half of the
# embedding's error: rms 0.18 of its own with them in int8, 0.10 without, 0.08 without block 2 too.
_FIRST_LINEARS = 4


def write_int8(source: Path, target: Path) -> None:
    """Write the float32 graph at `source` with int8 weights to `target`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = ir.load(source)
    # A Gemm becomes a MatMul first, under another name.
    kept = [*first_linears(model.graph, _FIRST_LINEARS), *classifier_nodes(model.graph)]
    with only_errors_from("root"):  # it advises preprocessing that changes nothing here
        quantize_dynamic(
            os.fspath(source),
            os.fspath(target),
            op_types_to_quantize=["Gemm", "MatMul"],
            nodes_to_exclude=[name for n in kept for name in (n.name, f"{n.name}_MatMul")],
            per_channel=True,
            # Unsigned weights would be safe from saturation on CPUs without VNNI, and are no
            # faster than float32.
            weight_type=QuantType.QInt8,
            use_external_data_format=is_large(model),
        )
