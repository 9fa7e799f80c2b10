"""Graphs of a reduced precision, and what export says of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.export import tiny
from vitcx.cli import main
from vitcx.export import export_model, exporting
from vitcx.export.graph import to_onnx
from vitcx.export.precision import measuring
from vitcx.export.precision.formats import AVAILABLE
from vitcx.export.precision.half import write_half, write_rounded
from vitcx.export.precision.int8 import write_int8
from vitcx.export.precision.reduced import write_reduced
from vitcx.runtime.bundle import Bundle, read_bundle
from vitcx.runtime.digests import sha256_of
from vitcx.runtime.errors import EngineError, InputError
from vitcx.runtime.explainer import load
from vitcx.runtime.precision_limits import LIMITS

HALVES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# A unit in the last place, relatively: 10 and 7 bits are kept after the first.
ULP = {"fp16": 2**-10, "bf16": 2**-7}


@pytest.fixture(scope="session")
def swin_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swin")
    return export_model(tiny.make("swin"), folder / "bundle").model_path


@pytest.fixture(scope="session")
def distilled_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distilled")
    return export_model(tiny.make("deit_distilled"), folder / "bundle").model_path


@pytest.fixture(params=["vit", "distilled", "swin"])
def graph(request: pytest.FixtureRequest, vit_bundle: Bundle) -> Path:
    if request.param == "vit":
        return vit_bundle.model_path
    path: Path = request.getfixturevalue(f"{request.param}_graph")
    return path


def run(path: Path, images: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answers: list[np.ndarray] = session.run(["probabilities", "embedding"], {"images": images})
    return answers


def pictures(count: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 3, size, size), dtype=np.float32)


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("precision", HALVES)
def test_products_are_narrow_and_norms_and_softmaxes_wide(
    graph: Path, precision: str, tmp_path: Path
) -> None:
    path = tmp_path / "half.onnx"
    write_half(graph, path, precision)
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input)}
    types |= {v.name: v.type.tensor_type.elem_type for v in inferred.output}
    types |= {w.name: w.data_type for w in inferred.initializer}
    assert types["images"] == types["probabilities"] == types["embedding"] == TensorProto.FLOAT
    products = [n for n in inferred.node if n.op_type == "MatMul"]
    assert len(products) > 10
    assert {types[name] for n in products for name in (*n.input, *n.output)} == {HALVES[precision]}
    for node in inferred.node:
        # The classifier is the one Gemm: its logits are not rounded.
        if node.op_type in ("LayerNormalization", "Softmax", "Gemm"):
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}


@pytest.mark.parametrize("precision", HALVES)
def test_the_stand_in_rounds_as_the_graph_does(
    vit_bundle: Bundle, precision: str, tmp_path: Path
) -> None:
    """Against onnx's own evaluator, which knows both types and optimises nothing."""
    narrow, stand_in = tmp_path / "narrow.onnx", tmp_path / "stand_in.onnx"
    write_half(vit_bundle.model_path, narrow, precision)
    write_rounded(narrow, stand_in)
    onnx.checker.check_model(stand_in, full_check=True)
    images = pictures(2)
    exact = run(vit_bundle.model_path, images)
    reference = ReferenceEvaluator(str(narrow))
    wanted = reference.run(["probabilities", "embedding"], {"images": images})
    for got, want, true in zip(run(stand_in, images), wanted, exact, strict=True):
        error = relative(np.asarray(want, dtype=np.float32), true)
        assert error > ULP[precision] / 100  # it does round
        # The evaluator adds up products in the narrow type or in float32, as NumPy happens to, and
        # ORT in float32: they agree to about the rounding itself, not beyond.
        assert relative(got, true) == pytest.approx(error, rel=0.8)


@pytest.mark.parametrize("precision", HALVES)
def test_weights_are_the_nearest_numbers(
    vit_bundle: Bundle, precision: str, tmp_path: Path
) -> None:
    path = tmp_path / "half.onnx"
    write_half(vit_bundle.model_path, path, precision)
    exact = {
        w.name: numpy_helper.to_array(w) for w in onnx.load(vit_bundle.model_path).graph.initializer
    }
    narrow = np.float16 if precision == "fp16" else ml_dtypes.bfloat16
    suffix = "_float16" if precision == "fp16" else "_bfloat16"
    found = 0
    for weight in onnx.load(path).graph.initializer:
        if weight.data_type == HALVES[precision]:
            found += 1
            want = exact[weight.name.removesuffix(suffix)].astype(narrow)
            assert numpy_helper.to_array(weight).tobytes() == want.tobytes()
    assert found > 10


def test_what_float16_cannot_hold_becomes_its_largest(tmp_path: Path) -> None:
    helper = onnx.helper
    value = helper.make_tensor_value_info
    shape = ["batch", 3, 4, 4]
    content = helper.make_graph(
        [
            helper.make_node("Mul", ["images", "huge"], ["embedding"]),
            helper.make_node("GlobalAveragePool", ["embedding"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"]),
        ],
        "huge",
        [value("images", TensorProto.FLOAT, shape)],
        [
            value("probabilities", TensorProto.FLOAT, ["batch", 3]),
            value("embedding", TensorProto.FLOAT, shape),
        ],
        [numpy_helper.from_array(np.float32(1e9).reshape(1), "huge")],
        value_info=[
            value("mean", TensorProto.FLOAT, ["batch", 3, 1, 1]),
            value("logits", TensorProto.FLOAT, ["batch", 3]),
        ],
    )
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(content, opset_imports=[opset], ir_version=9), tmp_path / "a.onnx")
    # The walk from the probabilities takes every node, for there is no product: nothing is narrow.
    write_half(tmp_path / "a.onnx", tmp_path / "b.onnx", "fp16")
    assert not any(n.op_type == "Cast" for n in onnx.load(tmp_path / "b.onnx").graph.node)


def test_float16_runs_on_the_cpu(graph: Path, tmp_path: Path) -> None:
    write_half(graph, tmp_path / "half.onnx", "fp16")
    images = pictures(3)
    got, expected = run(tmp_path / "half.onnx", images), run(graph, images)
    assert got[0].dtype == got[1].dtype == np.float32
    np.testing.assert_allclose(got[0].sum(1), 1, atol=1e-6)
    for mine, theirs in zip(got, expected, strict=True):
        assert 0 < relative(mine, theirs) < 16 * ULP["fp16"]


def test_int8_quantises_the_linear_layers_but_the_first_block_and_the_classifier(
    vit_bundle: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    write_int8(vit_bundle.model_path, path)
    nodes = onnx.load(path).graph.node
    wide = [n for n in nodes if n.op_type == "MatMul"]
    # The second block, the last, has five linear layers: its queries are made apart (`last_block`).
    assert sum(n.op_type == "MatMulInteger" for n in nodes) == 5
    # Four of the first block, two products of activations in each, and the classifier.
    assert len(wide) == 4 + 2 * 2 + 1
    images = pictures(3)
    mine, theirs = run(path, images), run(vit_bundle.model_path, images)
    # 8 bits of the largest magnitude; random weights have no outliers to speak of.
    assert 0 < relative(mine[0], theirs[0]) < 0.2
    assert relative(mine[1], theirs[1]) == 0  # the second block's input


@pytest.mark.parametrize("family", ["distilled", "swin"])
def test_int8_of_other_families_runs(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(f"{family}_graph")
    write_int8(source, tmp_path / "int8.onnx")
    images = pictures(2)
    mine, theirs = run(tmp_path / "int8.onnx", images), run(source, images)
    assert 0 < relative(mine[0], theirs[0]) < 0.3
    assert relative(mine[1], theirs[1]) < 0.3


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_weights_beside_the_graph(
    precision: str, vit_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "_ONE_FILE_BYTES", 10)
    target = tmp_path / "model.onnx"
    if precision == "int8":
        write_int8(vit_bundle.model_path, target)
    else:
        write_half(vit_bundle.model_path, target, precision)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert relative(run(target, pictures(1))[1], run(vit_bundle.model_path, pictures(1))[1]) < 0.2


def test_a_graph_with_branches_is_refused(tmp_path: Path) -> None:
    helper = onnx.helper
    value = helper.make_tensor_value_info
    branch = helper.make_graph(
        [helper.make_node("Relu", ["images"], ["inside"])],
        "branch",
        [],
        [value("inside", TensorProto.FLOAT, None)],
    )
    content = helper.make_graph(
        [helper.make_node("If", ["yes"], ["embedding"], then_branch=branch, else_branch=branch)],
        "branches",
        [value("images", TensorProto.FLOAT, [1])],
        [value("embedding", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array(True), "yes")],
    )
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(content, opset_imports=[opset], ir_version=9), tmp_path / "a.onnx")
    with pytest.raises(InputError, match="branches or loops cannot become bf16: use fp32"):
        write_half(tmp_path / "a.onnx", tmp_path / "b.onnx", "bf16")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_export_measures_what_the_precision_costs(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "DRAWN_SCENES", 2)
    steps: list[str] = []
    bundle = export_model(
        tiny.make("vit"), tmp_path / "bundle", precision=precision, report=steps.append
    )
    assert steps[-1] == f"measuring {precision}: 2 of 2 images"
    m = read_bundle(bundle.path).manifest
    assert m.precision == precision
    graphs = ["encoder.onnx", "model.onnx", "teams.onnx", "weights.data"]
    assert {p.name for p in bundle.path.iterdir()} == {"check.npz", "manifest.json", *graphs}
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    figures = m.precision_figures
    assert {limit.figure for limit in LIMITS} <= figures.keys()
    assert (figures["images"], figures["photographs"]) == (2, 0)
    assert 0 < figures["probabilities_max_abs"] < 1
    assert figures["rank_correlation_min"] <= figures["rank_correlation_median"] <= 1
    assert figures["deletion_change_low"] <= figures["deletion_change"]
    assert 0 < m.parity["embedding_rms_relative"] <= m.parity["embedding_rms_relative_tolerance"]


def test_a_reduced_bundle_encodes_in_float32_and_scores_in_its_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "DRAWN_SCENES", 2)
    module = tiny.make("vit")
    exact, int8, same = (
        export_model(module, tmp_path / name, precision=precision, encoder=encoder)
        for name, precision, encoder in (
            ("exact", "fp32", "fp32"),
            ("int8", "int8", "fp32"),
            ("same", "int8", "same"),
        )
    )
    images = pictures(3)
    with (
        load(exact.path, "onnxruntime") as reference,
        load(int8.path, "onnxruntime", allow_imprecise=True) as mixed,
        load(same.path, "onnxruntime", allow_imprecise=True) as reduced,
    ):
        encoded = reference.session.encode(images)
        for mine, theirs in zip(mixed.session.encode(images), encoded, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        scores = reduced.session.predict(images)
        np.testing.assert_array_equal(mixed.session.predict(images), scores)
        assert relative(scores, encoded[0]) > 0
        np.testing.assert_array_equal(
            mixed.explain(images[0]).masks, reference.explain(images[0]).masks
        )
        told = [e.explain(images[0]).provenance for e in (reference, mixed, reduced)]
        assert [p["execution_precision"] for p in told] == ["fp32", "int8", "int8"]
        assert [p["encoder_precision"] for p in told] == ["fp32", "fp32", "int8"]
    # The embedding of each bundle is that of the graph that encodes.
    keys = ("embedding_rms_relative", "embedding_rms_relative_tolerance")
    for key in keys:
        assert int8.manifest.parity[key] == exact.manifest.parity[key]
    assert same.manifest.parity[keys[1]] > exact.manifest.parity[keys[1]]
    assert int8.manifest.parity["probabilities_max_abs"] > 1e-4
    assert not (same.path / "encoder.onnx").exists()
    with pytest.raises(InputError, match="encoder is 'int8', expected one of fp32, same"):
        export_model(module, tmp_path / "other", precision="int8", encoder="int8")


def test_each_file_of_a_reduced_precision_is_digested_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digested: list[str] = []

    def noted(path: Path) -> str:
        digested.append(f"{path.parent.name}/{path.name}")
        return sha256_of(path)

    monkeypatch.setattr(exporting, "sha256_of", noted)
    export_model(tiny.make("vit"), tmp_path / "bundle", precision="int8")
    names = ["check.npz", "encoder.onnx", "model.onnx", "teams.onnx", "weights.data"]
    assert sorted(digested) == [f"new/{name}" for name in names]


def test_an_encoder_of_large_weights_has_a_file_of_its_own_for_them(
    vit_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "_ONE_FILE_BYTES", 10)
    folder, scratch = tmp_path / "new", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    exact = tmp_path / "exact"
    exact.mkdir()
    to_onnx.save_graph(ir.load(vit_bundle.model_path), exact / "model.onnx")
    write_reduced(AVAILABLE["fp16"], exact, folder, scratch)
    names = ["encoder.onnx", "encoder.onnx.data", "model.onnx", "model.onnx.data"]
    assert sorted(p.name for p in folder.iterdir()) == names
    got, expected = (
        run(path, pictures(2)) for path in (folder / "encoder.onnx", vit_bundle.model_path)
    )
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_command_says_what_it_costs_and_whether_it_will_be_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image
    from safetensors.torch import save_file

    from vitcx.export.timm_import import import_timm

    model = import_timm().create_model("test_vit", num_classes=2)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    noise = np.random.default_rng(0).integers(0, 256, (80, 90, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "photograph.png")
    options = ["--checkpoint", str(tmp_path / "weights.safetensors"), "--img-size", "64"]
    options += ["--check-image", str(tmp_path / "photograph.png"), "--precision", "int8"]
    bundle = tmp_path / "bundle"
    monkeypatch.setattr(
        "vitcx.runtime.precision_limits.LIMITS",
        (*LIMITS[:1], type(LIMITS[0])("rank_correlation_median", 2.0, True, "the correlation")),
    )
    assert main(["export", "test_vit", *options, "--out", str(bundle)]) == 0
    said = capsys.readouterr().out
    assert "int8 against fp32 on 1 images, of which 1 photographs: the same likeliest" in said
    assert "vitcx will refuse it without --allow-imprecise: the bundle of test_vit in int8" in said
    explain = ["explain", str(tmp_path / "photograph.png"), "--bundle", str(bundle)]
    explain += ["--out", str(tmp_path / "out")]
    assert main(explain) == 2
    assert "too far from fp32: the correlation is" in capsys.readouterr().err
    assert main([*explain, "--allow-imprecise"]) == 0


@pytest.mark.slow
def test_tensorrt_rtx_takes_the_narrow_graphs(
    vit_bundle: Bundle, swin_graph: Path, tmp_path: Path
) -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    for number, source in enumerate((vit_bundle.model_path, swin_graph)):
        for precision in HALVES:
            path = tmp_path / f"{number}_{precision}.onnx"
            write_half(source, path, precision)
            network = trt.Builder(logger).create_network(0)
            parser = trt.OnnxParser(network, logger)
            assert parser.parse_from_file(str(path)), parser.get_error(0).desc()
            assert network.get_input(0).dtype == trt.float32
            assert {network.get_output(i).dtype for i in range(2)} == {trt.float32}


def test_a_bfloat16_bundle_says_which_engines_it_is_for(
    vit_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from dataclasses import replace

    from vitcx.runtime.bundle import write_manifest

    write_half(vit_bundle.model_path, tmp_path / "model.onnx", "bf16")
    files = {"model.onnx": sha256_of(tmp_path / "model.onnx")}
    write_manifest(
        tmp_path, replace(vit_bundle.manifest, precision="bf16", files=files, token_grid=None)
    )
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(EngineError, match="ONNX Runtime has no bfloat16 on the CPU"),
    ):
        load(tmp_path, engine="onnxruntime", allow_imprecise=True)
    assert "does not say how far it is from fp32" in caplog.text
