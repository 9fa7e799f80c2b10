"""The engines ``openvino`` and ``openvino-bf16``: OpenVINO on the CPU, in either precision.

By name only: on a CPU, ``auto`` means one engine, so that no package that is installed beside it
changes the last bits of a result.
"""

from __future__ import annotations

from functools import partial

from vitcx.kernels.errors import first_line
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.cpu import openvino_session
from vitcx.runtime.engines.cpu.openvino_session import PRECISIONS, OpenVinoSession
from vitcx.runtime.engines.engine import Engine, EngineStatus, SessionOptions
from vitcx.runtime.engines.session import Session


def probe(name: str, _device: int = 0) -> EngineStatus:
    """Whether OpenVINO is here, and the CPU computes in the precision of the engine `name`."""
    try:
        openvino = openvino_session.import_openvino(name)
        cpu = openvino_session.cpu_of(openvino.Core())
    except Exception as error:
        return EngineStatus.found(name, "", [first_line(error)])
    precision = PRECISIONS[name]
    problems = [] if precision in cpu.precisions else [cpu.lacks(precision)]
    version = openvino.__version__.split("-")[0]
    return EngineStatus.found(name, f"OpenVINO {version} on {cpu.name}, {precision}", problems)


def _open(name: str, bundle: Bundle, options: SessionOptions) -> Session:
    return OpenVinoSession(bundle, options.threads, options.batch_size, name=name)


ENGINES = tuple(
    Engine(name, "openvino", partial(probe, name), partial(_open, name), automatic=False)
    for name in PRECISIONS
)
