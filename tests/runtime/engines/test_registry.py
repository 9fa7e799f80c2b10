"""Choosing an engine: what can run, what `auto` takes, and what is said about it."""

import logging
import sys
import threading
from importlib import metadata
from typing import get_args

import numpy as np
import pytest

from tests.tiny_bundle import write_tiny_bundle
from vitcx.kernels.errors import DeviceError
from vitcx.kernels.gpu.driver import Driver, GpuFacts
from vitcx.runtime.engines import gpu_probe
from vitcx.runtime.engines import registry as engines
from vitcx.runtime.engines.cpu import onnxruntime_engine, openvino_session
from vitcx.runtime.engines.engine import Engine, SessionOptions
from vitcx.runtime.engines.ort_cuda import cuda_libraries
from vitcx.runtime.engines.ort_cuda import engine as cuda_engine
from vitcx.runtime.engines.registry import (
    AUTOMATIC,
    ENGINE_NAMES,
    EngineName,
    EngineStatus,
    open_session,
    probe_engines,
)
from vitcx.runtime.engines.tensorrt import engine as tensorrt_engine
from vitcx.runtime.errors import BundleError, EngineError, InputError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


class Opened:
    """What a stand-in engine opens."""

    def __init__(self, name, options):
        self.name = name
        self.options = options


@pytest.fixture
def table(monkeypatch):
    """Puts stand-in engines into the table: name -> reason it lacks, or what opening raises."""

    def replace(**outcomes):
        made = []
        for name, outcome in outcomes.items():
            lacks = outcome if isinstance(outcome, str) else None
            status = EngineStatus(name, lacks is None, lacks or f"{name} on a device")

            def open(bundle, options, name=name, outcome=outcome):
                if isinstance(outcome, Exception):
                    raise outcome
                return Opened(name, options)

            made.append(
                Engine(name, "gpu", lambda device, s=status: s, open, on_gpu=name.startswith("gpu"))
            )
        monkeypatch.setattr(engines, "ENGINES", tuple(made))
        monkeypatch.setattr(engines, "check_session", lambda session, bundle: None)

    return replace


def test_auto_takes_the_first_that_can_run_and_says_why_not_the_others(table, caplog):
    table(first="no such card", second=None, third=None)
    with caplog.at_level(logging.INFO, "vitcx"):
        assert open_session(None).name == "second"
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.message == "engine second: second on a device (first: no such card)"


def test_auto_goes_on_where_opening_fails_and_says_so(table, caplog):
    table(first=RuntimeError("a bad plan\nmore"), second=EngineError("too small"), third=None)
    with caplog.at_level(logging.INFO, "vitcx"):
        assert open_session(None).name == "third"
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "engine first" in warnings[0]
    assert "a bad plan" in warnings[0]
    assert "second does not open: too small" in caplog.records[-1].message


def test_a_named_engine_is_never_replaced(table):
    table(first=EngineError("too small"), second=None)
    with pytest.raises(EngineError, match="too small"):
        open_session(None, "first")


def test_where_nothing_opens_the_last_reason_is_raised(table):
    table(first="no such card", second=BundleError("a damaged graph"))
    with pytest.raises(BundleError, match="a damaged graph"):
        open_session(None)
    table(first="no such card", second="not installed")
    with pytest.raises(EngineError, match="first: no such card; second: not installed"):
        open_session(None)


def test_auto_changes_no_precision_and_knows_one_engine_for_the_cpu():
    assert set(ENGINE_NAMES) - {"auto", *AUTOMATIC} == {"openvino", "openvino-bf16"}
    assert AUTOMATIC[-1] == "onnxruntime"
    assert AUTOMATIC.index("tensorrt") < AUTOMATIC.index("tensorrt-rtx") < AUTOMATIC.index("cuda")


@pytest.mark.parametrize(
    "arguments",
    [
        {"engine": "abacus"},
        {"threads": 0},
        {"batch_size": 0},
        {"batch_size": "8"},
        {"batch_size": 8.0},
        {"threads": True},
        {"device": -1},
        {"device": "cuda:0"},
        {"device": 0},  # of an engine on the CPU
    ],
)
def test_bad_arguments_are_named(bundle, arguments):
    with pytest.raises(InputError, match=str(next(iter(arguments)))):
        open_session(bundle, **{"engine": "onnxruntime", **arguments})


def test_numpys_integers_are_integers(table):
    table(gpu_one=None)
    options = open_session(None, "gpu_one", np.int64(2), np.int32(8), np.uint8(1)).options
    assert options == SessionOptions(threads=2, batch_size=8, device=1)
    assert all(type(value) is int for value in (options.threads, options.device))


def test_a_device_is_for_engines_on_a_gpu(table):
    table(gpu_one=EngineError("too small"), host=None, gpu_two=None)
    assert open_session(None, device=3).name == "gpu_two"  # `auto` does not end on the CPU
    assert open_session(None, device=3).options.device == 3
    assert open_session(None).name == "host"
    with pytest.raises(
        InputError, match="'host' runs on the CPU: leave it out, or take one of gpu"
    ):
        open_session(None, "host", device=0)


def test_a_device_that_is_not_there_is_named(a_gpu):
    for status in (cuda_engine.probe(1), tensorrt_engine.probe("tensorrt-rtx", 1)):
        assert not status.available
        assert "there is no GPU 1: the driver shows 1, counted from 0" in status.problems


def test_each_engine_has_a_record_of_its_own():
    names = [engine.name for engine in engines.ENGINES]
    assert len(set(names)) == len(names)
    extras = metadata.metadata("vitcx").get_all("Provides-Extra")
    for engine in engines.ENGINES:
        assert engine.extra in extras
        assert engine.probe(0).name == engine.name


def test_every_probe_says_what_it_runs_on_or_what_to_do():
    for status in probe_engines():
        assert status.reason
        assert status.available is not bool(status.problems)
        assert "\n" not in "".join((status.reason, *status.problems, *status.notes))


def test_a_probe_survives_whatever_the_libraries_do(monkeypatch):
    def burst(*arguments):
        raise SystemError("unspeakable")

    for module, name in (
        (gpu_probe, "find_driver"),
        (gpu_probe, "compiler_version"),
        (onnxruntime_engine, "import_onnxruntime"),
        (cuda_engine, "import_onnxruntime"),
        (openvino_session, "import_openvino"),
        (tensorrt_engine, "find_library"),
    ):
        monkeypatch.setattr(module, name, burst)
    for status in probe_engines():
        assert not status.available
        assert any("unspeakable" in problem for problem in status.problems)


H200 = GpuFacts("NVIDIA H200", "9.0", 140 << 30)


@pytest.fixture
def a_gpu(monkeypatch):
    """A driver with one card, as far as the probes see."""
    monkeypatch.setattr(gpu_probe, "find_driver", lambda: Driver("13.0", (H200,)))


def test_without_a_gpu_the_driver_is_the_first_thing_named(monkeypatch):
    def none():
        raise DeviceError("no NVIDIA driver on this machine")

    monkeypatch.setattr(gpu_probe, "find_driver", none)
    for status in (cuda_engine.probe(), tensorrt_engine.probe("tensorrt-rtx")):
        assert status.reason == "no NVIDIA driver on this machine"


def test_an_onnxruntime_without_cuda_is_told_from_one_with(monkeypatch, a_gpu):
    import onnxruntime

    # The CUDA build lists its provider wherever it is installed.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    status = cuda_engine.probe()
    assert not status.available
    assert any("not built for CUDA" in problem for problem in status.problems)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    status = cuda_engine.probe()
    assert not any("CUDA" in problem for problem in status.problems)
    monkeypatch.setattr(cuda_libraries.ctypes, "CDLL", lambda name: None)
    status = cuda_engine.probe()
    if status.available:  # NVRTC and cuda-core are here
        assert "NVIDIA H200 (compute capability 9.0)" in status.reason


def test_a_missing_cuda_library_keeps_the_engine_from_running_and_is_printed_nowhere(
    capsys, monkeypatch, a_gpu
):
    import onnxruntime

    def preload_dlls():
        print("Failed to load /site-packages/nvidia/libcudart.so.13: undefined symbol")
        print("Failed to load libcublas.so.13: cannot open shared object file")
        print("Failed to load libnvrtc.so.13: cannot open shared object file")
        print("Failed to load libcudnn_ops.so.9: cannot open shared object file")
        print("Please follow the instructions")

    def nothing(name):
        raise OSError(name)

    monkeypatch.setattr(cuda_libraries.ctypes, "CDLL", nothing)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls, raising=False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    cublas, cudnn = cuda_engine.probe().problems[-2:]
    assert cublas.startswith("libcublas.so.13 does not load (cannot open shared object file)")
    assert cudnn.startswith("cuDNN 9")
    assert capsys.readouterr().out == ""
    # The loader had what the wheel's file could not give.
    assert not any("cudart" in problem for problem in cuda_engine.probe().problems)


def test_two_that_look_for_cuda_libraries_at_once_leave_the_standard_output_alone():
    inside, first_has_left = threading.Event(), threading.Event()

    class Second:
        @staticmethod
        def preload_dlls():
            inside.set()
            first_has_left.wait(1)

    class First:
        @staticmethod
        def preload_dlls():
            second.start()
            inside.wait(1)  # in vain: the second waits until this is over

    second = threading.Thread(target=cuda_libraries.preload_cuda_libraries, args=(Second,))
    before = sys.stdout
    cuda_libraries.preload_cuda_libraries(First)
    first_has_left.set()
    second.join()
    after, sys.stdout = sys.stdout, before
    assert after is before


def test_an_old_driver_is_named(monkeypatch):
    monkeypatch.setattr(gpu_probe, "find_driver", lambda: Driver("11.8", (H200,)))
    assert "CUDA 11.8 at most" in cuda_engine.probe().reason


def test_a_driver_too_old_for_the_onnxruntime_that_is_installed_is_named(monkeypatch, a_gpu):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    for built_for, too_new in (("12.8", False), ("13.0", False), ("14.1", True), ("", False)):
        monkeypatch.setattr(onnxruntime, "cuda_version", built_for, raising=False)
        problems = "; ".join(cuda_engine.probe().problems)
        assert ("built for CUDA 14.1, and the NVIDIA driver runs CUDA 13.0" in problems) is too_new


def test_a_card_that_tensorrt_rtx_does_not_know_is_named(a_gpu):
    pytest.importorskip("tensorrt_rtx")
    status = tensorrt_engine.probe("tensorrt-rtx")
    assert not status.available
    assert any("compute capability 9.0" in problem for problem in status.problems)


def test_two_onnxruntimes_in_one_place_are_noted(monkeypatch):
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "1.31" if name == "onnxruntime-gpu" else real(name)
    )
    (note,) = onnxruntime_engine.probe().notes
    assert "onnxruntime and onnxruntime-gpu are both installed" in note
    assert "pip uninstall" in note


def test_editors_know_the_names_of_all_engines():
    assert get_args(EngineName) == ENGINE_NAMES
