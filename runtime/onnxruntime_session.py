"""A session on ONNX Runtime's CPU provider."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.blend import blend
from vitcx.kernels.noise import NoiseCache
from vitcx.runtime.bundle import EMBEDDING, INPUT, PROBABILITIES, Bundle, check_tensor_names
from vitcx.runtime.errors import BundleError, EngineError, MissingExtraError
from vitcx.runtime.lanes import LANE_ROWS, Lanes, available_cores
from vitcx.runtime.session import Batch, Scores, Session

# Each batch ends with lanes that wait for the last one, which costs more of a short batch: on 2
# cores and DeiT-Tiny 23 rows take 9 % less in one batch than in 16 and 7.
DEFAULT_BATCH_SIZE = 32

FloatArray = NDArray[np.float32]


def import_onnxruntime() -> Any:
    """The onnxruntime module, or an error that names the extra."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("the engine 'onnxruntime'", "onnxruntime", "cpu") from None
    return onnxruntime


class OnnxRuntimeSession(Session):
    """ONNX Runtime on the CPU: passes of a few rows, side by side (see `lanes`).

    Parameters
    ----------
    bundle : checked against its digests.
    threads : for a batch; None takes every core.
    batch_size : rows of a mask batch; None takes `DEFAULT_BATCH_SIZE`.
    """

    engine = "onnxruntime"
    device = "CPU"

    def __init__(
        self, bundle: Bundle, threads: int | None = None, batch_size: int | None = None
    ) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.batch_size = batch_size or DEFAULT_BATCH_SIZE
        threads = threads or available_cores()
        lanes = max(1, min(threads, self.batch_size // LANE_ROWS))
        # Of a pass: its own lane, and those threads that no lane takes, which the passes share.
        options.intra_op_num_threads = threads - lanes + 1
        options.inter_op_num_threads = 1
        try:
            self._session: Any = ort.InferenceSession(
                str(bundle.model_path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own exception types have no common base
            if bundle.manifest.precision == "bf16":
                raise EngineError(
                    f"'{bundle.path}' is in bf16, and ONNX Runtime has no bfloat16 on the CPU: "
                    "export it in fp32, fp16 or int8, or use another engine"
                ) from None
            raise BundleError(f"ONNX Runtime cannot load '{bundle.model_path}': {error}") from None
        check_tensor_names(
            [i.name for i in self._session.get_inputs()],
            [o.name for o in self._session.get_outputs()],
        )
        self._lanes = Lanes(lanes)
        self._shape = (self.batch_size, 3, *bundle.manifest.input_size)
        self._noise = NoiseCache()
        self._local = threading.local()

    def encode(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        if self._session is None:
            raise _closed()
        probabilities, embedding = self._lanes.run(
            lambda: self._run([PROBABILITIES, EMBEDDING], images)
        )
        return probabilities, embedding

    def predict(self, images: FloatArray) -> FloatArray:
        return self._rows(images)

    def score(self, batch: Batch) -> Scores:
        start = time.perf_counter()
        rows = self._buffer()

        def make(part: slice) -> None:
            blend(batch.images, batch.masks, batch.jobs[part], rows, self._noise)

        self._lanes.map(make, len(batch.jobs), -(-len(batch.jobs) // self._lanes.count))
        blended = time.perf_counter()
        probabilities = self._rows(rows[: batch.rows])
        return Scores(probabilities, blended - start, time.perf_counter() - blended)

    def close(self) -> None:
        self._session = None
        self._lanes.close()

    def _buffer(self) -> FloatArray:
        """This thread's input rows: kept, so that a batch costs no allocation."""
        rows: FloatArray | None = getattr(self._local, "rows", None)
        if rows is None:
            rows = self._local.rows = np.empty(self._shape, dtype=np.float32)
        return rows

    def _rows(self, images: FloatArray) -> FloatArray:
        """Probabilities of (N,3,H,W), N at least 1, in passes of a few rows."""
        if self._session is None:
            raise _closed()
        return np.concatenate(
            self._lanes.map(lambda part: self._run([PROBABILITIES], images[part])[0], len(images))
        )

    def _run(self, outputs: list[str], images: FloatArray) -> list[FloatArray]:
        session = self._session
        if session is None:
            raise _closed()
        results: list[FloatArray] = session.run(outputs, {INPUT: images})
        return results


def _closed() -> EngineError:
    return EngineError("the session is closed: load the bundle again")
