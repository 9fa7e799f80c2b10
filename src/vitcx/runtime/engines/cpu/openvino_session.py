"""A session on OpenVINO's CPU plugin, in float32, or in bfloat16 by name.

bfloat16 is an approximation, and so an engine of its own: `openvino-bf16`. Masks are scored in it;
the picture's own pass, which the masks come from, stays in float32. It is refused where the CPU
does not compute in bfloat16 (AMX, or AVX-512 BF16): OpenVINO would emulate it there, far more
slowly than float32, or leave it at float32.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.errors import first_line
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.cpu.cpu_session import CpuSession
from vitcx.runtime.errors import BundleError, EngineError, MissingExtraError
from vitcx.runtime.graph_interface import GraphTensor, Interface, check_interface, interfaces_of

FloatArray = NDArray[np.float32]

DEFAULT_BATCH_SIZE = 32
# Rows of a pass.
PASS_ROWS = {"float32": 2, "bfloat16": 4}
# The engine's name -> what it computes in.
PRECISIONS = {"openvino": "float32", "openvino-bf16": "bfloat16"}
_HINTS = {"float32": "f32", "bfloat16": "bf16"}
_CAPABILITIES = {"FP32": "float32", "BF16": "bfloat16"}


def import_openvino(engine: str = "openvino") -> Any:
    """The openvino module, or an error that names the extra."""
    try:
        import openvino
    except ImportError:
        raise MissingExtraError(f"the engine '{engine}'", "openvino", "openvino") from None
    return openvino


@dataclass(frozen=True)
class Cpu:
    """The CPU as OpenVINO sees it: what it computes in without emulation."""

    name: str
    precisions: tuple[str, ...]

    def lacks(self, precision: str) -> str:
        """Why `precision` is refused."""
        return (
            f"the CPU ({self.name}) does not compute in {precision}: OpenVINO needs AMX or AVX-512 "
            "BF16 for it; take the engine 'openvino'"
        )


def cpu_of(core: Any) -> Cpu:
    """What an `openvino.Core` says of the CPU."""
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return Cpu(
        str(core.get_property("CPU", "FULL_DEVICE_NAME")),
        tuple(name for key, name in _CAPABILITIES.items() if key in capabilities),
    )


class OpenVinoSession(CpuSession):
    """OpenVINO on the CPU.

    Parameters
    ----------
    bundle : checked against its digests.
    threads : for a batch; None takes every core.
    batch_size : rows of a mask batch; None takes `DEFAULT_BATCH_SIZE`.
    name : ``openvino`` or ``openvino-bf16``.

    Raises
    ------
    EngineError
        The CPU does not compute in the precision asked for.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        batch_size: int | None = None,
        *,
        name: str = "openvino",
    ) -> None:
        precision = PRECISIONS[name]
        super().__init__(bundle, threads, batch_size or DEFAULT_BATCH_SIZE, PASS_ROWS[precision])
        openvino = import_openvino(name)
        core = openvino.Core()
        cpu = cpu_of(core)
        if precision not in cpu.precisions:
            raise EngineError(f"the engine '{name}' cannot run here: {cpu.lacks(precision)}")
        self.engine = name
        self.precision = precision
        self.encoder_precision = "float32"

        def compiled(graph: Path, expected: Interface, computed_in: str) -> _Model:
            return _Model(openvino, core, graph, expected, computed_in, self.threads, self.passes)

        scores, encodes, teams = interfaces_of(bundle)
        self._scorer = self._encoder = compiled(bundle.model_path, scores, precision)
        if bundle.encoder is not bundle or precision != "float32":
            self._encoder = compiled(bundle.encoder.model_path, encodes, "float32")
        if teams is not None:
            self._team_scorer = compiled(bundle.teams_path, teams, precision)

    def _run(
        self, engine: _Model, feeds: Mapping[str, NDArray[Any]], *outputs: str
    ) -> list[FloatArray]:
        return engine.run(feeds, *outputs)


class _Model:
    """A graph that OpenVINO has compiled; each thread that runs it has a request of its own."""

    def __init__(
        self,
        openvino: Any,
        core: Any,
        graph: Path,
        expected: Interface,
        precision: str,
        threads: int,
        passes: int,
    ) -> None:
        self._openvino = openvino
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": passes,
            # Two graphs would be pinned to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            model = core.read_model(str(graph))
            check_interface(
                f"'{graph}'", Interface(_tensors(model.inputs), _tensors(model.outputs)), expected
            )
            self._model: Any = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot load '{graph}': {first_line(error)}") from None
        taken = self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if taken != _HINTS[precision]:
            raise EngineError(
                f"OpenVINO computes in {taken} where {precision} was asked for: update openvino, "
                "or take the engine 'onnxruntime'"
            )
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self, feeds: Mapping[str, NDArray[Any]], *outputs: str) -> list[FloatArray]:
        with self._request() as request:
            # Read where they lie: the rows are this thread's until the request is done.
            request.infer(
                {
                    name: self._openvino.Tensor(np.ascontiguousarray(array), shared_memory=True)
                    for name, array in feeds.items()
                }
            )
            # Copies: the request is another thread's next.
            return [np.array(request.get_tensor(name).data, np.float32) for name in outputs]

    @contextmanager
    def _request(self) -> Iterator[Any]:
        """A request that nobody else uses; kept for the next caller."""
        try:
            request = self._requests.get_nowait()
        except queue.Empty:
            request = self._model.create_infer_request()
        yield request
        self._requests.put(request)


def _tensors(ports: Any) -> tuple[GraphTensor, ...]:
    return tuple(
        GraphTensor(
            port.get_any_name(),
            # OpenVINO's names of the others are near enough to be understood.
            {"f32": "float32", "i64": "int64"}.get(
                name := port.get_element_type().get_type_name(), name
            ),
            tuple(
                size.get_length() if size.is_static else None for size in port.get_partial_shape()
            ),
        )
        for port in ports
    )
