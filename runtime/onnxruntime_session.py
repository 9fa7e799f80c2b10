"""A session on ONNX Runtime's CPU provider."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.blend import blend
from vitcx.kernels.noise import NoiseCache
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.errors import BundleError, EngineError, MissingExtraError
from vitcx.runtime.session import Batch, Scores, Session

# Measured on 2 cores with DeiT-Tiny: the rate is flat from 8 to 32 rows, memory is not.
DEFAULT_BATCH_SIZE = 16
INPUT, PROBABILITIES, EMBEDDING = "images", "probabilities", "embedding"

FloatArray = NDArray[np.float32]


def import_onnxruntime() -> Any:
    """The onnxruntime module, or an error that names the extra."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("the engine 'onnxruntime'", "onnxruntime", "cpu") from None
    return onnxruntime


class OnnxRuntimeSession(Session):
    """ONNX Runtime on the CPU.

    Parameters
    ----------
    bundle : checked against its digests.
    threads : for one forward pass; None takes every core.
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
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        try:
            self._session: Any = ort.InferenceSession(
                str(bundle.model_path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own exception types have no common base
            raise BundleError(f"ONNX Runtime cannot load '{bundle.model_path}': {error}") from None
        inputs = [i.name for i in self._session.get_inputs()]
        outputs = [o.name for o in self._session.get_outputs()]
        if inputs != [INPUT] or not {PROBABILITIES, EMBEDDING} <= set(outputs):
            self._session = None
            raise BundleError(
                f"the graph takes {inputs} and gives {outputs}; a bundle's takes ['{INPUT}'] and "
                f"gives '{PROBABILITIES}' and '{EMBEDDING}': export it again"
            )
        self.batch_size = batch_size or DEFAULT_BATCH_SIZE
        self._shape = (self.batch_size, 3, *bundle.manifest.input_size)
        self._noise = NoiseCache()
        self._local = threading.local()

    def encode(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        probabilities, embedding = self._run([PROBABILITIES, EMBEDDING], images)
        return probabilities, embedding

    def predict(self, images: FloatArray) -> FloatArray:
        parts = [
            self._run([PROBABILITIES], images[start : start + self.batch_size])[0]
            for start in range(0, len(images), self.batch_size)
        ]
        return np.concatenate(parts)

    def score(self, batch: Batch) -> Scores:
        start = time.perf_counter()
        rows = self._buffer()
        blend(batch.images, batch.masks, batch.jobs, rows, self._noise)
        blended = time.perf_counter()
        probabilities = self._run([PROBABILITIES], rows[: batch.rows])[0]
        return Scores(probabilities, blended - start, time.perf_counter() - blended)

    def close(self) -> None:
        self._session = None

    def _buffer(self) -> FloatArray:
        """This thread's input rows: kept, so that a batch costs no allocation."""
        rows: FloatArray | None = getattr(self._local, "rows", None)
        if rows is None:
            rows = self._local.rows = np.empty(self._shape, dtype=np.float32)
        return rows

    def _run(self, outputs: list[str], images: FloatArray) -> list[FloatArray]:
        if self._session is None:
            raise EngineError("the session is closed: load the bundle again")
        results: list[FloatArray] = self._session.run(outputs, {INPUT: images})
        return results
