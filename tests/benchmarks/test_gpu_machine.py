"""The commands for a GPU machine: what arrives there, what they need, and what a fault leaves."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import kernels, probe
from benchmarks.gpu.probe import Report
from benchmarks.gpu.workload import threshold_for
from vitcx.runtime.method.clustering import cluster
from vitcx.runtime.method.masks import cosine_distances, vit_masks

ROOT = Path(__file__).resolve().parents[2]


# --- the report -----------------------------------------------------------------------------------


def test_every_step_is_in_the_file_when_it_is_done(tmp_path):
    path = tmp_path / "made" / "report.json"
    report = Report(path)
    seen = []

    def look():
        seen.append(json.loads(path.read_text()))
        return 2

    report.step("one", lambda: 1)
    report.step("two", look)
    assert seen[0]["one"] == 1
    assert "two" not in seen[0]
    assert json.loads(path.read_text())["two"] == 2
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_a_step_that_fails_is_a_line_in_the_file_and_on_the_terminal(tmp_path, capsys):
    report = Report(tmp_path / "report.json")

    def broken():
        raise OSError("no room\nmore")

    report.step("one", broken)
    report.step("two", lambda: {"status": 9, "tail": "first\nlast"})
    report.step("three", lambda: {"status": 0, "tail": ""})
    assert report.failed == ["one", "two"]
    assert json.loads((tmp_path / "report.json").read_text())["one"] == {
        "error": "OSError: no room"
    }
    said = capsys.readouterr().err
    assert "one: OSError: no room\n" in said
    assert "two: ended with 9: last\n" in said


# --- what has to be installed ---------------------------------------------------------------------


def run_here(code):
    environment = {**os.environ, "PYTHONPATH": "src"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


ONLY = """
import importlib.metadata, sys
absent = set(importlib.metadata.packages_distributions()) - set({brought!r})
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
sys.meta_path.insert(0, Absent())
import benchmarks.gpu.engines, benchmarks.gpu.kernels, vitcx.runtime.engines.tensorrt.session
"""


def test_nothing_but_the_packages_in_the_readme_is_needed():
    """Beside numpy, which torch's machine has; others are imported where they are used."""
    brought = ["click", "cuda", "numpy", "scipy", "PIL", "platformdirs", "vitcx"]
    done = run_here(ONLY.format(brought=brought))
    assert done.returncode == 0, done.stderr
    # The test can fail.
    brought.remove("scipy")
    done = run_here(ONLY.format(brought=brought))
    assert "No module named 'scipy" in done.stderr


# --- kernels --------------------------------------------------------------------------------------


def test_what_fails_does_not_stop_the_rest_of_the_kernels(monkeypatch, tmp_path):
    asked = []

    def run(command, seconds, **options):
        asked.append(command)
        return {"status": 0, "tail": "fine"}

    def no_gpu():
        raise kernels.DeviceError("No CUDA driver")

    for module in (kernels, probe):
        monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(kernels, "Gpu", no_gpu)
    report = Report(tmp_path / "report.json")
    kernels.run_all(report)
    assert report.found["bandwidth"] == {"error": "DeviceError: No CUDA driver"}
    for name in ("parity", "memcheck", "racecheck"):
        assert report.found[name] == {"status": 0, "tail": "fine"}
    (tests,) = (command for command in asked if "pytest" in command)
    assert tests[-1] == "tests/kernels/gpu/test_gpu.py"
    watched = [command for command in asked if command[0] == "compute-sanitizer"]
    assert [command[2] for command in watched] == ["memcheck", "racecheck"]


def test_the_gpu_tests_need_no_plugin_of_pytest():
    """The project's settings name one, and are strict."""
    done = probe.run_tests(
        ["tests/kernels/gpu/test_gpu.py", "-p", "no:timeout", "--collect-only"], 120
    )
    assert done["status"] == 0, done["tail"]
    assert "test_gpu.py" in done["tail"]


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [1, 7, 20, 31, 400])
def test_the_threshold_leaves_as_many_masks_as_are_wanted(wanted):
    size = (56, 56)
    embedding = np.random.default_rng(0).normal(size=(32, 7, 7)).astype(np.float32)
    embedding[5] = 1.0  # constant: no mask
    threshold, count = threshold_for(embedding, size, wanted)
    assert count == min(wanted, 31)
    assert 0 <= threshold <= 1
    masks = vit_masks(embedding, size)
    assert cluster(cosine_distances(masks, size), threshold).max() + 1 == count


def test_an_embedding_of_one_mask_has_one():
    embedding = np.zeros((2, 4, 4), np.float32)
    embedding[0, 1, 1] = 1.0
    assert threshold_for(embedding, (32, 32), 70) == (0.0, 1)


def test_the_operations_of_a_graph_are_those_of_its_products(tmp_path):
    pytest.importorskip("onnx")
    from benchmarks.gpu.workload import operations_of_a_pass
    from tests.tiny_bundle import CHANNELS, CLASSES, PATCH, SIZE, write_tiny_bundle

    bundle = write_tiny_bundle(tmp_path / "bundle")
    patches = (SIZE // PATCH) ** 2
    expected = 2 * patches * CHANNELS * 3 * PATCH**2 + 2 * CHANNELS * CLASSES
    assert operations_of_a_pass(bundle.model_path) == expected


def test_attentions_count_as_their_two_products(tmp_path):
    onnx = pytest.importorskip("onnx")
    from benchmarks.gpu.workload import operations_of_a_pass

    helper = onnx.helper
    given = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3, length, 8])
        for name, length in (("q", 1), ("k", 5), ("v", 5))
    ]
    out = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["batch", 3, 1, 8])
    node = helper.make_node("Attention", ["q", "k", "v"], ["out"])
    graph = helper.make_graph([node], "g", given, [out])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), path)
    assert operations_of_a_pass(path) == 3 * 2 * (1 * 5 * 8 + 1 * 5 * 8)


@pytest.mark.parametrize(("attention", "opset"), [("plain", 20), ("fused", 23)])
def test_a_random_bundle_is_of_the_model_that_its_seed_makes(tmp_path, attention, opset):
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    from benchmarks.gpu.bundle import random_model, write_bundle
    from vitcx.runtime.explainer import load

    write_bundle("test_vit", 3, "fp16", "fp32", tmp_path / "bundle", attention)
    model = random_model("test_vit", 3)
    with load(tmp_path / "bundle", "onnxruntime", allow_imprecise=True) as explainer:
        assert (explainer.manifest.precision, explainer.manifest.opset) == ("fp16", opset)
        picture = np.random.default_rng(0).normal(size=(1, 3, *explainer.manifest.input_size))
        picture = picture.astype(np.float32)
        with torch.no_grad():
            expected = model(torch.from_numpy(picture)).softmax(dim=1).numpy()
        # The weights are rounded to 11 bits.
        np.testing.assert_allclose(explainer.session.predict(picture), expected, atol=1e-3)


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_a_bundle_for_the_older_parser_answers_the_same(tmp_path, family):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    from benchmarks.gpu.bundle import write_bundle
    from benchmarks.gpu.opset17 import write_older
    from vitcx.runtime.explainer import load

    if family == "vit":
        newer = write_bundle("test_vit", 3, "fp16", "fp32", tmp_path / "newer")
    else:
        from tests.export import tiny
        from vitcx.export import export_model

        newer = export_model(tiny.make(family), tmp_path / "newer")
    older = write_older(newer, tmp_path / "older")
    for file in (name for name in older.manifest.files if name.endswith(".onnx")):
        graph = onnx.load(older.path / file)
        assert [(o.domain, o.version) for o in graph.opset_import] == [("", 17)]
        assert not any(n.op_type == "Gelu" for n in graph.graph.node)
        assert not any(n.attribute for n in graph.graph.node if n.op_type == "Shape")
    size = newer.manifest.input_size
    pictures = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)
    answers = []
    for bundle in (newer, older):
        with load(bundle.path, "onnxruntime", allow_imprecise=True) as explainer:
            session = explainer.session
            answers.append((*session.encode(pictures), session.predict(pictures)))
    for theirs, ours in zip(*answers, strict=True):
        # Float32's last bits; what float16 rounds, it rounds in other places.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
