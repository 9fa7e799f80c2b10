"""The engine ``onnxruntime``: ONNX Runtime on the CPU."""

from __future__ import annotations

from vitcx.kernels.errors import first_line
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.cpu.onnxruntime_session import OnnxRuntimeSession
from vitcx.runtime.engines.engine import Engine, EngineStatus, SessionOptions
from vitcx.runtime.engines.session import Session
from vitcx.runtime.onnx_runtime import clashing_packages, import_onnxruntime

NAME = "onnxruntime"


def probe(_device: int = 0) -> EngineStatus:
    """Whether ONNX Runtime is here."""
    try:
        ort = import_onnxruntime()
    except Exception as error:  # a broken installation fails in its own ways
        return EngineStatus.found(NAME, "", [first_line(error)])
    runs_on = f"ONNX Runtime {ort.__version__} on the CPU"
    return EngineStatus.found(NAME, runs_on, notes=clashing_packages())


def _open(bundle: Bundle, options: SessionOptions) -> Session:
    return OnnxRuntimeSession(bundle, options.threads, options.batch_size)


ENGINE = Engine(NAME, "cpu", probe, _open)
