"""Which engines there are, and choosing one by name.

The one module that imports engines: each has its record in a file of its own.

An engine asked for by name that cannot run is an error; only ``auto`` chooses, and says in the log
what it took and why not the others. It never changes the precision.
"""

from __future__ import annotations

import contextlib
import logging
from numbers import Integral
from typing import Any, Literal

from vitcx.kernels.errors import first_line
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.cpu import onnxruntime_engine, openvino_engine
from vitcx.runtime.engines.engine import Engine, EngineStatus, SessionOptions
from vitcx.runtime.engines.ort_cuda import engine as cuda_engine
from vitcx.runtime.engines.session import Session
from vitcx.runtime.engines.session_check import check_session
from vitcx.runtime.engines.tensorrt import engine as tensorrt_engine
from vitcx.runtime.errors import EngineError, InputError

__all__ = [
    "AUTOMATIC",
    "ENGINES",
    "ENGINE_NAMES",
    "EngineName",
    "EngineStatus",
    "open_session",
    "probe_engines",
]

log = logging.getLogger("vitcx")

# In the order in which `auto` prefers them.
ENGINES: tuple[Engine, ...] = (
    *tensorrt_engine.ENGINES,
    cuda_engine.ENGINE,
    onnxruntime_engine.ENGINE,
    *openvino_engine.ENGINES,
)
ENGINE_NAMES = ("auto", *(engine.name for engine in ENGINES))
# The same for editors: a test compares them.
EngineName = Literal[
    "auto", "tensorrt", "tensorrt-rtx", "cuda", "onnxruntime", "openvino", "openvino-bf16"
]
AUTOMATIC = tuple(engine.name for engine in ENGINES if engine.automatic)


def probe_engines() -> list[EngineStatus]:
    """Every engine's status on this machine: those of ``auto`` first, in its order."""
    return [engine.probe(0) for engine in ENGINES]


def open_session(
    bundle: Bundle,
    engine: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    device: int | None = None,
    *,
    check: bool = True,
) -> Session:
    """A session of the bundle on an engine.

    Parameters
    ----------
    bundle : checked against its digests.
    engine : one of `ENGINE_NAMES`.
    threads : CPU threads of one forward pass; None takes every core.
    batch_size : rows of a mask batch; None takes the engine's default.
    device : index of the GPU; None takes the first, or the CPU. With a number, ``auto`` takes GPU
        engines alone.
    check : whether the session has to pass the bundle's check (see `session_check`).

    Raises
    ------
    InputError
        If there is no such engine, or an option cannot be used.
    BundleError
        If the graph is not the manifest's, or gives what is no answer.
    EngineError
        If the engine asked for cannot run here or computes something else than the bundle's model,
        or if none can.
    MissingExtraError
        If its library is not installed.
    """
    options = SessionOptions(
        threads=_whole("threads", threads, 1),
        batch_size=_whole("batch_size", batch_size, 1),
        device=_whole("device", device, 0),
    )
    on_gpu = [known for known in ENGINES if known.on_gpu]
    if engine == "auto":
        choices = ENGINES if options.device is None else on_gpu
        return _open_automatic(
            bundle, options, [known for known in choices if known.automatic], check
        )
    for known in ENGINES:
        if known.name == engine:
            break
    else:
        names = ", ".join(("auto", *(known.name for known in ENGINES)))
        raise InputError(f"engine is {engine!r}, not one of {names}")
    if options.device is not None and not known.on_gpu:
        raise InputError(
            f"device is {options.device} and the engine {engine!r} runs on the CPU: leave it out, "
            f"or take one of {', '.join(other.name for other in on_gpu)}"
        )
    return _open(known, bundle, options, check)


def _whole(name: str, value: Any, least: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"{name} is {value!r}: give a whole number of at least {least}, or None")
    return int(value)


def _open(engine: Engine, bundle: Bundle, options: SessionOptions, check: bool) -> Session:
    """A session, which has shown that it computes the bundle's model if `check` is set."""
    session = engine.open(bundle, options)
    try:
        if check:
            check_session(session, bundle)
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to see
            session.close()
        raise
    return session


def _open_automatic(
    bundle: Bundle, options: SessionOptions, choices: list[Engine], check: bool
) -> Session:
    refused: list[str] = []
    failure: Exception | None = None
    for engine in choices:
        status = engine.probe(options.device or 0)
        if not status.available:
            refused.append(f"{engine.name}: {status.reason}")
            continue
        try:
            session = _open(engine, bundle, options, check)
        except Exception as error:  # whatever a device's libraries raise: the next engine may work
            failure = error
            reason = first_line(error)
            log.warning("engine %s should run here and does not open: %s", engine.name, reason)
            refused.append(f"{engine.name} does not open: {reason}")
            continue
        others = "; ".join(refused) or "it is the first choice"
        log.info("engine %s: %s (%s)", engine.name, status.reason, others)
        return session
    if failure is not None:  # the last one's: a fault of the bundle is one to every engine
        raise failure
    raise EngineError(f"no engine can run here: {'; '.join(refused)}")
