"""What is read out of the library's listing of layers."""

from __future__ import annotations

from vitcx.runtime.engines.tensorrt.plan_report import PlanReport, count_layers, each_once

# From logs of TensorRT-RTX 1.7, cut short.
LISTING = """Layers:
Name: __mye4_myl0_0, LayerType: shape_call, Inputs: [], Outputs: [], TacticName:
Name: node_conv2d [profile 1]_myl1_1, LayerType: correlation, Inputs: [ { Name: images }]
Name: _gemm_mha_v2_myl0_6, LayerType: kgen, Inputs: [ { Name: __myln_k_arg__bb1_28_myl0 }]
Name: _gemm_mha_v2_myl1_7, LayerType: kgen, Inputs: [], TacticName: _gemm_mha_v2_0x67740ed4
Name: __myl_FcAdd_myl1_3, LayerType: runtime_fusion, Inputs: [], Metadata: [ONNX Layer: mha]
"""


def report(**changes: object) -> PlanReport:
    values = {
        "library": "tensorrt-rtx 1.7",
        "targets": ("8.9",),
        "seconds": 1.0,
        "bytes": 10,
        "profiles": 2,
        "attentions": 12,
    }
    return PlanReport(**{**values, **changes})  # type: ignore[arg-type]


def test_layers_are_counted_by_kind_and_fused_attention_by_name() -> None:
    layers, fused = count_layers(["Building", LISTING, "done"])
    assert layers == {"correlation": 1, "kgen": 2, "runtime_fusion": 1, "shape_call": 1}
    assert fused == 2


def test_no_listing_is_not_none_fused() -> None:
    assert count_layers(["Building", "Name: something else"]) == ({}, None)


def test_the_attentions_in_words() -> None:
    assert report(fused=24).attention_in_words() == "all 24 attentions are fused kernels"
    assert report(fused=7).attention_in_words() == "7 of 24 attentions are fused kernels"
    assert report(fused=0).attention_in_words() == "0 of 24 attentions are fused kernels"
    assert "not known" in report(fused=None).attention_in_words()
    assert report(attentions=0, fused=0).attention_in_words() == "no attention in the graph"


def test_a_line_that_comes_twice_is_told_once() -> None:
    assert each_once(["a\n  b", "c", "a b"]) == ("a b", "c")
