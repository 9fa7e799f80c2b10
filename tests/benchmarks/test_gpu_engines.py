"""The GPU engines' benchmark with no GPU: what it measures is measured on the stand-ins."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.gpu import engines, measures
from benchmarks.gpu.contest import Entrant, chosen, contest
from benchmarks.gpu.probe import Report
from tests.kernels.conftest import shim  # noqa: F401
from tests.kernels.gpu import fake_cuda
from tests.runtime.engines.tensorrt import recording_tensorrt
from tests.tiny_bundle import SIZE, write_tiny_bundle
from vitcx.runtime.engines.cpu.onnxruntime_session import OnnxRuntimeSession
from vitcx.runtime.engines.engine import EngineStatus
from vitcx.runtime.engines.tensorrt import library as tensorrt_library
from vitcx.runtime.engines.tensorrt.session import TensorRTSession
from vitcx.runtime.explainer import Explainer, load


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


@pytest.fixture
def quick(monkeypatch):
    for name, value in (("REPEATS", 3), ("PACKED", 5), ("ONE_BY_ONE", 9)):
        monkeypatch.setattr(measures, name, value)


def measured(explainers, clock, masks=None, report=None):
    report = report or Report()
    pixels = measures.made_pictures((SIZE, SIZE), 3)
    assert all(p.shape == (3, SIZE, SIZE) and p.dtype == np.float32 for p in pixels)
    measures.measure(*explainers, chosen(explainers[0], pixels, masks), clock, report)
    return report


def test_everything_is_measured_and_is_json(explainers, quick):
    report = measured(explainers, measures.Clock(600))
    found = report.found
    assert report.failed == []
    json.dumps(found)
    assert found["device"] == "Fake GPU"
    # As in tests/runtime/engines/tensorrt/test_session.py.
    differences = found["parity"]
    assert differences["embedding_scale"] > 0
    for name in ("probabilities", "embedding", "masked_scores"):
        assert differences[name] < 1e-5
    pictures = chosen(explainers[0], measures.made_pictures((SIZE, SIZE), 3), 3)
    maps = measures.map_parity(*explainers, pictures)
    assert min(maps["saliency_rank_correlation"]) > 0.999
    assert len(maps["saliency"]) == 2
    assert max(maps["saliency"]) < 1e-4
    assert found["passes"]["batch_size"] == 8
    assert found["passes"]["score_seconds"] > 0
    assert len(found["one_by_one"]["samples"]) == 9
    assert 0 < found["one_by_one"]["outside_forward_passes"] < 1
    assert found["packed"]["explanations"] == 5
    shares = measures.share_of_matrix_rate({**found, "matrix_tflop_per_s": {"float32": 2.0}})
    operations = found["operations_of_a_pass"]
    rates = found["passes"]["rows_per_second"], found["one_by_one"]["p50"]
    assert shares["mask_batch"] == pytest.approx(rates[0] * operations / 2e12)
    passes = found["one_by_one"]["forward_passes"]
    assert shares["explanation"] == pytest.approx(passes * operations / rates[1] / 2e12)


@pytest.mark.parametrize("masks", [2, 3, 5])
def test_the_number_of_masks_can_be_chosen(masks, explainers, quick):
    found = measured(explainers, measures.Clock(600), masks).found
    assert found["masks"] == [masks] * 3
    assert found["one_by_one"]["forward_passes"] == 2 * masks + 1


def test_a_mask_batch_holds_a_whole_explanation_where_its_masks_are_chosen():
    def rows(**given):
        return engines.rows(SimpleNamespace(**{"masks": None, "batch_size": None, **given}))

    assert (rows(), rows(masks=70), rows(masks=70, batch_size=64)) == (128, 140, 64)


def test_without_time_everything_is_left_out_and_named(explainers):
    clock = measures.Clock(0)
    report = measured(explainers, clock)
    assert not {"parity", "passes", "one_by_one", "packed"} & set(report.found)
    assert clock.left_out == ["parity", "passes", "one_by_one", "packed"]


def test_a_step_that_fails_is_a_line_and_the_rest_is_measured(explainers, quick, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("CUDA_ERROR_UNKNOWN\nmore")

    monkeypatch.setattr(measures, "one_by_one", broken)
    report = measured(explainers, measures.Clock(600))
    assert report.failed == ["one_by_one"]
    assert report.found["one_by_one"] == {"error": "RuntimeError: CUDA_ERROR_UNKNOWN"}
    assert report.found["packed"]["explanations"] == 5
    assert "probabilities" in report.found["parity"]
    told = measures.goal(report.found)
    assert told["p50_seconds"] is None
    assert told["packed_per_second"] > 0


@pytest.fixture
def vit():
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from vitcx.export.timm_import import import_timm

    try:
        transformer = import_timm().models.vision_transformer.VisionTransformer
    except ModuleNotFoundError:
        pytest.skip("timm is not installed")
    torch.manual_seed(0)
    return transformer(
        img_size=SIZE, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=5
    ).eval()


def test_pytorch_takes_turns_with_ours(explainers, vit, monkeypatch, tmp_path):
    """On the CPU, with no time for the compiler."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(engines, "torch_model", lambda arguments: (vit, {"weights": "random"}))
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(engines, "REPEATS", 4)
    clock = measures.Clock(115)
    pictures = chosen(explainers[0], measures.made_pictures((SIZE, SIZE), 2), 3)
    path = tmp_path / "report.json"
    report = Report(path)
    arguments = SimpleNamespace(masks=3)
    found = engines.against_torch(explainers[0], pictures, arguments, clock, report)
    assert clock.left_out == ["torch float16, compiled"]
    assert list(found["explanations"]) == [
        "ours",
        "torch float32, a mask at a time",
        "torch float32",
        "torch float16",
    ]
    for told in found["explanations"].values():
        assert len(told["samples"]) == 4
        assert told["masks"] == [3, 3]  # as many passes for everybody
        assert {"p50", "p99"} <= set(told)
    assert found["explanations"]["ours"]["ours_is_faster_by"]["median"] == 1
    assert found["probabilities_differ_by"] > 0  # another model, and it is told
    # What was found is in the file before the last round is over.
    assert (
        json.loads(path.read_text())["torch"]["explanations"].keys() == found["explanations"].keys()
    )
    goal = measures.goal({"torch": found})
    assert set(goal["faster_than"]) == set(found["explanations"]) - {"ours"}


def test_an_entrant_that_fails_is_a_line_and_the_others_are_timed():
    def broken(i):
        raise RuntimeError("no compiler\nmore")

    entered = {
        "ours": Entrant(lambda i: None, 0, [3]),
        "compiled": Entrant(broken, 0),
        "loop": Entrant(lambda i: None, 0),
    }
    told = []
    found = contest(entered, 1, 2, measures.Clock(600), told.append)
    assert found["compiled"] == {"error": "RuntimeError: no compiler"}
    assert len(found["loop"]["samples"]) == 2
    assert len(told) == 2


def status(name, problems=()):
    return EngineStatus(name, not problems, "", tuple(problems))


def test_an_engine_that_cannot_run_costs_the_others_no_time(monkeypatch, tmp_path):
    started = []

    def run_child(engine, given, seconds, path):
        started.append((engine, given, seconds))
        return {"goal": {}}

    monkeypatch.setattr(engines, "run_child", run_child)
    monkeypatch.setattr(engines, "probe", lambda report: None)
    monkeypatch.setattr(engines, "run_tests", lambda paths, seconds: {"status": 0})
    monkeypatch.setattr(
        engines,
        "probe_engines",
        lambda: [status("cuda"), status("tensorrt", ["not here"]), status("tensorrt-rtx", ["x"])],
    )
    arguments = SimpleNamespace(
        bundle="demo", masks=70, model=None, checkpoint=None, random_weights=0, batch_size=None,
        pictures=[Path("/a.jpg")], engines="cuda,tensorrt,tensorrt-rtx,other", seconds=500.0,
    )  # fmt: skip
    report = Report(tmp_path / "report.json")
    engines.run_all(arguments, report)
    ((engine, given, seconds),) = started
    assert engine == "cuda"
    assert seconds > 490
    assert given == ["--bundle", "demo", "--masks", "70", "--random-weights", "0", "/a.jpg"]
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["engines"]["tensorrt"] == {"error": "not here"}
    assert found["engines"]["other"] == {"error": "there is no such engine"}
    assert found["engines"]["cuda"] == {"goal": {}}


def test_what_an_engine_found_before_its_process_was_stopped_is_kept(monkeypatch, tmp_path):
    path = tmp_path / "cuda.json"

    def killed(command, **options):
        Report(path).put("packed", {"per_second": 3.0})
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(engines.subprocess, "run", killed)
    found = engines.run_child("cuda", [], 30.0, path)
    assert found == {"error": "stopped after 30 s", "packed": {"per_second": 3.0}}


def test_an_engines_process_writes_what_it_found(tmp_path):
    """The whole of it, on an engine that runs anywhere."""
    pytest.importorskip("onnx")
    path = tmp_path / "report.json"
    given = ["--bundle", "demo", "--masks", "4", "--batch-size", "8"]
    # No time for more than the start: what is measured is in the tests above.
    found = engines.run_child("onnxruntime", given, 60.0, path)
    assert found["masks"] == [4] * 4
    assert found["operations_of_a_pass"] > 1e8
    assert "passes" in found
    assert found["goal"]["forward_passes"] in (9, None)
    # torch has no GPU here: a line, and what comes after it is there.
    assert "error" in found["matrix_tflop_per_s"] or found["left_out"]


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
        (picture,) = measures.made_pictures(explainer.manifest.input_size, 1)
        batch = measures.mask_batch(picture, explainer.manifest.grid, 5)
        assert explainer.session.score(batch).probabilities.shape[0] == 5
