"""The GPU engines' benchmark with no GPU: what it measures is measured on the stand-ins."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import engines
from tests.kernels import fake_cuda
from tests.kernels.conftest import shim  # noqa: F401
from tests.runtime import recording_tensorrt
from tests.tiny_bundle import SIZE, write_tiny_bundle
from vitcx.runtime import tensorrt_library
from vitcx.runtime.explainer import Explainer, load
from vitcx.runtime.onnxruntime_session import OnnxRuntimeSession
from vitcx.runtime.tensorrt_session import TensorRTSession


@pytest.fixture
def explainers(monkeypatch, tmp_path, shim):  # noqa: F811
    pytest.importorskip("onnx")
    fake_cuda.install(monkeypatch, shim)
    recording_tensorrt.install(monkeypatch, tmp_path)
    bundle = write_tiny_bundle(tmp_path / "bundle")
    with (
        Explainer(bundle, TensorRTSession(bundle, batch_size=8)) as ours,
        Explainer(bundle, OnnxRuntimeSession(bundle)) as cpu,
    ):
        yield ours, cpu
    tensorrt_library.find_library.cache_clear()


def test_everything_is_measured_and_is_json(explainers, monkeypatch):
    monkeypatch.setattr(engines, "REPEATS", 3)
    monkeypatch.setattr(engines, "PACKED", 5)
    pictures = engines.made_pictures((SIZE, SIZE), 3)
    assert all(p.shape == (3, SIZE, SIZE) and p.dtype == np.float32 for p in pictures)
    report = engines.measure(*explainers, pictures, engines.Clock(600))
    json.dumps(report)
    assert report["device"] == "Fake GPU"
    # As in tests/runtime/test_tensorrt_session.py.
    differences = report["parity"]
    assert differences["embedding_scale"] > 0
    for name in ("probabilities", "embedding", "masked_scores"):
        assert differences[name] < 1e-5
    assert min(differences["saliency_rank_correlation"]) > 0.999
    assert report["passes"]["batch_size"] == 8
    assert report["passes"]["score_seconds"] > 0
    assert len(report["one_by_one"]["samples"]) == 9
    assert 0 < report["one_by_one"]["outside_forward_passes"] < 1
    assert report["packed"]["explanations"] == 5
    torch_report = {"matrix_tflop_per_s": {"float32": 2.0}, "flop_of_a_pass": 10}
    shares = engines.share_of_matrix_rate({**report, "torch": torch_report}, "fp32")
    expected = report["passes"]["rows_per_second"] * 10 / 2e12
    assert shares["mask_batch"] == pytest.approx(expected)
    assert engines.share_of_matrix_rate(report, "fp32") is None


def test_without_time_everything_is_left_out_and_named(explainers):
    clock = engines.Clock(0)
    report = engines.measure(*explainers, engines.made_pictures((SIZE, SIZE), 1), clock)
    assert set(report) == {"device", "precision"}
    assert clock.left_out == ["parity", "passes", "one_by_one", "packed"]


def test_pytorch_takes_turns_with_ours(explainers, monkeypatch):
    """On the CPU, with no time for the compiler."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from vitcx.export import models
    from vitcx.export.timm_import import import_timm

    try:
        transformer = import_timm().models.vision_transformer.VisionTransformer
    except ModuleNotFoundError:
        pytest.skip("timm is not installed")
    torch.manual_seed(0)
    vit = transformer(
        img_size=SIZE, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=5
    )
    monkeypatch.setattr(models, "timm_model", lambda name, checkpoint: (vit, "random"))
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(engines, "matrix_rates", lambda: {"float32": 1.0})
    monkeypatch.setattr(engines, "REPEATS", 4)
    clock = engines.Clock(85)
    pictures = engines.made_pictures((SIZE, SIZE), 2)
    report = engines.against_torch(explainers[0], pictures, "vit", None, clock)
    json.dumps(report)
    assert clock.left_out == ["torch float16, compiled"]
    assert list(report["explanations"]) == [
        "ours",
        "torch float32, a mask at a time",
        "torch float32",
        "torch float16",
    ]
    assert {len(found["samples"]) for found in report["explanations"].values()} == {4}
    assert report["explanations"]["ours"]["ours_is_faster_by"] == 1
    assert report["flop_of_a_pass"] > 0


def test_without_a_gpu_it_says_so_in_one_line():
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine may have a GPU")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.engines"],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "GPU" in done.stderr or "driver" in done.stderr or "cuda" in done.stderr


def test_the_demo_bundle_is_what_it_measures_by_default():
    with load("demo") as explainer:
        (picture,) = engines.made_pictures(explainer.manifest.input_size, 1)
        batch = engines.mask_batch(picture, explainer.manifest.grid, 5)
        assert explainer.session.score(batch).probabilities.shape[0] == 5
