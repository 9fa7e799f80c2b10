"""A session on ONNX Runtime's CPU provider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.errors import first_line
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.cpu.cpu_session import CpuSession
from vitcx.runtime.engines.cpu.parallel_passes import PASS_ROWS
from vitcx.runtime.errors import BundleError, EngineError
from vitcx.runtime.graph_interface import Interface, check_interface, interfaces_of
from vitcx.runtime.onnx_runtime import import_onnxruntime, interface_of_session, open_on_cpu

# Each batch ends with passes that wait for the last one, which costs more of a short batch: on 2
# cores and DeiT-Tiny 23 rows take 9 % less in one batch than in 16 and 7.
DEFAULT_BATCH_SIZE = 32

FloatArray = NDArray[np.float32]


class OnnxRuntimeSession(CpuSession):
    """ONNX Runtime on the CPU.

    Parameters
    ----------
    bundle : checked against its digests.
    threads : for a batch; None takes every core.
    batch_size : rows of a mask batch; None takes `DEFAULT_BATCH_SIZE`.
    """

    engine = "onnxruntime"

    def __init__(
        self, bundle: Bundle, threads: int | None = None, batch_size: int | None = None
    ) -> None:
        super().__init__(bundle, threads, batch_size or DEFAULT_BATCH_SIZE, PASS_ROWS)
        ort = import_onnxruntime()
        # Of a pass: its own thread, and those that are left over, which the passes share.
        each = self.threads - self.passes + 1
        scores, encodes, teams = interfaces_of(bundle)
        self._scorer = self._encoder = _open(ort, bundle, bundle.model_path, scores, each)
        if bundle.encoder is not bundle:
            self._encoder = _open(ort, bundle.encoder, bundle.encoder.model_path, encodes, each)
        if teams is not None:
            self._team_scorer = _open(ort, bundle, bundle.teams_path, teams, each)

    def _run(
        self, engine: Any, feeds: Mapping[str, NDArray[Any]], *outputs: str
    ) -> list[FloatArray]:
        answers: list[FloatArray] = engine.run(list(outputs), dict(feeds))
        return answers


def _open(ort: Any, bundle: Bundle, graph: Path, expected: Interface, threads: int) -> Any:
    """ONNX Runtime's session of one of a bundle's graphs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    try:
        session = open_on_cpu(ort, graph, options)
    except Exception as error:  # onnxruntime's own exception types have no common base
        if bundle.manifest.precision == "bf16":
            raise EngineError(
                f"'{bundle.path}' is in bf16, and ONNX Runtime has no bfloat16 on the CPU: "
                "export it in fp32, fp16 or int8, or use another engine"
            ) from None
        raise BundleError(f"ONNX Runtime cannot load '{graph}': {first_line(error)}") from None
    check_interface(f"'{graph}'", interface_of_session(session), expected)
    return session
