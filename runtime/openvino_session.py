"""A session on OpenVINO's CPU plugin, in float32, or in bfloat16 by name.

bfloat16 is an approximation, and so an engine of its own: `openvino-bf16`. It is refused where the
CPU does not compute in bfloat16 (AMX, or AVX-512 BF16): OpenVINO would emulate it there, far more
slowly than float32, or leave it at float32.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.blend import blend
from vitcx.kernels.noise import NoiseCache
from vitcx.runtime.bundle import EMBEDDING, INPUT, PROBABILITIES, Bundle, check_tensor_names
from vitcx.runtime.errors import BundleError, EngineError, MissingExtraError
from vitcx.runtime.session import Batch, Scores, Session

FloatArray = NDArray[np.float32]

DEFAULT_BATCH_SIZE = 16
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


class OpenVinoSession(Session):
    """OpenVINO on the CPU. Each thread that calls at the same time has a request of its own.

    Parameters
    ----------
    bundle : checked against its digests.
    threads : for one forward pass; None takes every core.
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
        self._openvino = openvino = import_openvino(name)
        core = openvino.Core()
        cpu = cpu_of(core)
        precision = PRECISIONS[name]
        if precision not in cpu.precisions:
            raise EngineError(f"the engine '{name}' cannot run here: {cpu.lacks(precision)}")
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            # One request has all the threads: the batch is what there is to share out.
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(str(bundle.model_path))
            check_tensor_names(
                [port.get_any_name() for port in model.inputs],
                [port.get_any_name() for port in model.outputs],
            )
            self._model: Any = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot load '{bundle.model_path}': {error}") from None
        taken = self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if taken != _HINTS[precision]:
            raise EngineError(
                f"OpenVINO computes in {taken} where {precision} was asked for: update openvino, "
                "or take the engine 'onnxruntime'"
            )
        self.engine = name
        self.device = "CPU"
        self.precision = precision
        self.batch_size = batch_size or DEFAULT_BATCH_SIZE
        self._shape = (self.batch_size, 3, *bundle.manifest.input_size)
        self._noise = NoiseCache()
        self._local = threading.local()
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def encode(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        probabilities, embedding = self._run(images, PROBABILITIES, EMBEDDING)
        return probabilities, embedding

    def predict(self, images: FloatArray) -> FloatArray:
        parts = [
            self._run(images[start : start + self.batch_size], PROBABILITIES)[0]
            for start in range(0, len(images), self.batch_size)
        ]
        return np.concatenate(parts)

    def score(self, batch: Batch) -> Scores:
        start = time.perf_counter()
        rows: FloatArray | None = getattr(self._local, "rows", None)
        if rows is None:
            rows = self._local.rows = np.empty(self._shape, dtype=np.float32)
        blend(batch.images, batch.masks, batch.jobs, rows, self._noise)
        blended = time.perf_counter()
        probabilities = self._run(rows[: batch.rows], PROBABILITIES)[0]
        return Scores(probabilities, blended - start, time.perf_counter() - blended)

    def close(self) -> None:
        self._model = None
        while not self._requests.empty():
            self._requests.get()

    def _run(self, images: FloatArray, *outputs: str) -> list[FloatArray]:
        with self._request() as request:
            # Read where it lies: the rows are this thread's until the request is done.
            tensor = self._openvino.Tensor(np.ascontiguousarray(images), shared_memory=True)
            request.infer({INPUT: tensor})
            # Copies: the request is another thread's next.
            return [np.array(request.get_tensor(name).data, np.float32) for name in outputs]

    @contextmanager
    def _request(self) -> Iterator[Any]:
        """A request that nobody else uses; kept for the next caller."""
        model = self._model
        if model is None:
            raise EngineError("the session is closed: load the bundle again")
        try:
            request = self._requests.get_nowait()
        except queue.Empty:
            request = model.create_infer_request()
        yield request
        self._requests.put(request)
