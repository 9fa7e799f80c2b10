"""Which engines there are, which can run here, and choosing one by name.

An engine asked for by name that cannot run is an error; only ``auto`` chooses, and says in the log
what it took and why not the others.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass

from vitcx.runtime.bundle import Bundle
from vitcx.runtime.errors import EngineError, InputError
from vitcx.runtime.session import Session

log = logging.getLogger("vitcx")


@dataclass(frozen=True)
class EngineStatus:
    """Whether an engine can run here. `reason` says what it would run on, or what it lacks."""

    name: str
    available: bool
    reason: str


@dataclass(frozen=True)
class _Engine:
    probe: Callable[[], EngineStatus]
    open: Callable[[Bundle, int | None, int | None], Session]


def _probe_onnxruntime() -> EngineStatus:
    from vitcx.runtime.onnxruntime_session import import_onnxruntime

    try:
        ort = import_onnxruntime()
    except ImportError as error:
        return EngineStatus("onnxruntime", False, str(error))
    return EngineStatus("onnxruntime", True, f"ONNX Runtime {ort.__version__} on the CPU")


def _open_onnxruntime(bundle: Bundle, threads: int | None, batch_size: int | None) -> Session:
    from vitcx.runtime.onnxruntime_session import OnnxRuntimeSession

    return OnnxRuntimeSession(bundle, threads, batch_size)


def _planned(name: str, module: str) -> _Engine:
    """An engine whose session is not written yet: it says so, and whether its library is here."""

    def probe() -> EngineStatus:
        found = importlib.util.find_spec(module) is not None
        library = f"the module '{module}' is {'' if found else 'not '}installed"
        return EngineStatus(name, False, f"planned, not in this version ({library})")

    def refuse(bundle: Bundle, threads: int | None, batch_size: int | None) -> Session:
        raise EngineError(f"the engine '{name}' cannot run here: {probe().reason}")

    return _Engine(probe, refuse)


# In the order in which `auto` prefers them.
_ENGINES = {
    "tensorrt": _planned("tensorrt", "tensorrt"),
    "tensorrt-rtx": _planned("tensorrt-rtx", "tensorrt_rtx"),
    "cuda": _planned("cuda", "onnxruntime"),
    "onnxruntime": _Engine(_probe_onnxruntime, _open_onnxruntime),
}
ENGINE_NAMES = ("auto", *_ENGINES)


def probe_engines() -> list[EngineStatus]:
    """Every engine's status on this machine, in the order in which ``auto`` prefers them."""
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
    refused: list[str] = []
    for name, candidate in _ENGINES.items():
        status = candidate.probe()
        if status.available:
            others = "; ".join(refused) or "it is the first choice"
            log.info("engine %s: %s (%s)", name, status.reason, others)
            return candidate.open(bundle, threads, batch_size)
        refused.append(f"{name}: {status.reason}")
    raise EngineError(f"no engine can run here: {'; '.join(refused)}")
