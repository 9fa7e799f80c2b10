"""Errors of the device layer and of the libraries on a device, as a user can act on them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from vitcx.kernels.errors import first_line
from vitcx.runtime.errors import EngineError, VitcxError

# CUDA_ERROR_OUT_OF_MEMORY, "Cuda Runtime (out of memory)", "Error Code 2: OutOfMemory"; TensorRT's
# "CUDA error 2 for 132-byte allocation"; ONNX Runtime's "Failed to allocate memory";
# CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED.
_OUT_OF_MEMORY = re.compile(
    r"out[ _]?of[ _]?memory|cuda error 2 for|failed to allocate memory|status_alloc_failed",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of CUDA or of an engine says that the device has no room."""
    return _OUT_OF_MEMORY.search(str(error)) is not None


@contextlib.contextmanager
def device_errors(doing: str) -> Iterator[None]:
    """Errors of the device layer as `EngineError`, in one line; `doing` says what failed."""
    try:
        yield
    except VitcxError:
        raise
    except Exception as error:  # cuda.core's own, ours of the device layer, and the libraries'
        raise EngineError(f"{doing} failed: {first_line(error)}") from error
