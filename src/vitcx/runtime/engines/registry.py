"""Which engines there are, and choosing one by name.

An engine asked for by name that cannot run is an error; only ``auto`` chooses, and says in the log
what it took and why not the others. It never changes the precision.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from vitcx.kernels.errors import first_line
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.probes import (
    EngineStatus,
    probe_cuda,
    probe_onnxruntime,
    probe_openvino,
    probe_tensorrt,
)
from vitcx.runtime.engines.session import Session
from vitcx.runtime.errors import EngineError, InputError

__all__ = ["AUTOMATIC", "ENGINE_NAMES", "EngineStatus", "open_session", "probe_engines"]

log = logging.getLogger("vitcx")


@dataclass(frozen=True)
class _Engine:
    """`automatic`: whether ``auto`` may take it."""

    probe: Callable[[], EngineStatus]
    open: Callable[[Bundle, int | None, int | None], Session]
    automatic: bool = True


def _open_onnxruntime(bundle: Bundle, threads: int | None, batch_size: int | None) -> Session:
    from vitcx.runtime.engines.cpu.onnxruntime_session import OnnxRuntimeSession

    return OnnxRuntimeSession(bundle, threads, batch_size)


def _open_cuda(bundle: Bundle, threads: int | None, batch_size: int | None) -> Session:
    from vitcx.runtime.engines.ort_cuda.session import OnnxRuntimeCudaSession

    return OnnxRuntimeCudaSession(bundle, threads, batch_size)


def _open_openvino(
    name: str, bundle: Bundle, threads: int | None, batch_size: int | None
) -> Session:
    from vitcx.runtime.engines.cpu.openvino_session import OpenVinoSession

    return OpenVinoSession(bundle, threads, batch_size, name=name)


def _open_tensorrt(
    flavour: str, bundle: Bundle, threads: int | None, batch_size: int | None
) -> Session:
    from vitcx.runtime.engines.tensorrt.session import TensorRTSession

    return TensorRTSession(bundle, flavour, batch_size)  # it has no use for the CPU's threads


# In the order in which `auto` prefers them. OpenVINO is by name only: on a CPU, `auto` means one
# engine, so that no package that is installed beside it changes the last bits of a result.
_ENGINES = {
    "tensorrt": _Engine(partial(probe_tensorrt, "tensorrt"), partial(_open_tensorrt, "tensorrt")),
    "tensorrt-rtx": _Engine(
        partial(probe_tensorrt, "tensorrt-rtx"), partial(_open_tensorrt, "tensorrt-rtx")
    ),
    "cuda": _Engine(probe_cuda, _open_cuda),
    "onnxruntime": _Engine(probe_onnxruntime, _open_onnxruntime),
    "openvino": _Engine(
        partial(probe_openvino, "openvino"), partial(_open_openvino, "openvino"), automatic=False
    ),
    "openvino-bf16": _Engine(
        partial(probe_openvino, "openvino-bf16"),
        partial(_open_openvino, "openvino-bf16"),
        automatic=False,
    ),
}
ENGINE_NAMES = ("auto", *_ENGINES)
AUTOMATIC = tuple(name for name, engine in _ENGINES.items() if engine.automatic)


def probe_engines() -> list[EngineStatus]:
    """Every engine's status on this machine: those of ``auto`` first, in its order."""
    return [engine.probe() for engine in _ENGINES.values()]


def open_session(
    bundle: Bundle, engine: str = "auto", threads: int | None = None, batch_size: int | None = None
) -> Session:
    """A session of the bundle on an engine.

    Parameters
    ----------
    bundle : checked against its digests.
    engine : one of `ENGINE_NAMES`.
    threads : CPU threads of one forward pass; None takes every core.
    batch_size : rows of a mask batch; None takes the engine's default.

    Raises
    ------
    EngineError
        If the engine asked for cannot run here, or none can.
    MissingExtraError
        If its library is not installed.
    """
    if engine not in ENGINE_NAMES:
        raise InputError(f"engine is {engine!r}, not one of {', '.join(ENGINE_NAMES)}")
    for name, value in (("threads", threads), ("batch_size", batch_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InputError(f"{name} is {value!r}: give a whole number of at least 1, or None")
    if engine != "auto":
        return _ENGINES[engine].open(bundle, threads, batch_size)
    return _open_automatic(bundle, threads, batch_size)


def _open_automatic(bundle: Bundle, threads: int | None, batch_size: int | None) -> Session:
    refused: list[str] = []
    failure: Exception | None = None
    for name in AUTOMATIC:
        status = _ENGINES[name].probe()
        if not status.available:
            refused.append(f"{name}: {status.reason}")
            continue
        try:
            session = _ENGINES[name].open(bundle, threads, batch_size)
        except Exception as error:  # whatever a device's libraries raise: the next engine may work
            failure = error
            reason = first_line(error)
            log.warning("engine %s should run here and does not open: %s", name, reason)
            refused.append(f"{name} does not open: {reason}")
            continue
        others = "; ".join(refused) or "it is the first choice"
        log.info("engine %s: %s (%s)", name, status.reason, others)
        return session
    if failure is not None:  # the last one's: a fault of the bundle is one to every engine
        raise failure
    raise EngineError(f"no engine can run here: {'; '.join(refused)}")
