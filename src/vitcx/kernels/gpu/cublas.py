"""cuBLAS's single-precision matrix product, through ctypes: the one call of it that we need.

The library is found and loaded on first use, by `cuda.pathfinder`, which comes with `cuda.core`: a
wheel (`nvidia-cublas`), a conda package or a CUDA toolkit. Never ran on hardware so far: see
docs/gpu-notes.md.
"""

from __future__ import annotations

import ctypes

from vitcx.kernels.closing import Closing
from vitcx.kernels.errors import DeviceError, first_line
from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.cuda_modules import cuda_module
from vitcx.kernels.gpu.streams import Stream

_NO_TRANSPOSE, _TRANSPOSE = 0, 1
_STATUS = {
    1: "not initialised",
    3: "out of memory",
    7: "invalid value",
    8: "not supported by this GPU",
    11: "a memory mapping failed",
    13: "execution failed",
    14: "internal error",
    15: "not supported",
}


class Cublas(Closing):
    """A cuBLAS handle on the current device. A context manager; closing it twice is fine.

    For one thread at a time, as cuBLAS asks.

    Raises
    ------
    DeviceError
        The library is not there, or a call of it failed.
    """

    def __init__(self) -> None:
        pathfinder = cuda_module("cuda.pathfinder")
        try:
            path = pathfinder.load_nvidia_dynamic_lib("cublas").abs_path
        except Exception as error:  # the class differs between versions
            raise DeviceError(
                f"cuBLAS is not on this machine ({first_line(error)}): "
                "run  pip install nvidia-cublas"
            ) from error
        self._library = ctypes.CDLL(path)
        self._handle: ctypes.c_void_p | None = ctypes.c_void_p()
        self._check("cublasCreate_v2", ctypes.byref(self._handle))

    def inner_products(
        self, left: DeviceArray, right: DeviceArray, out: DeviceArray, stream: Stream
    ) -> None:
        """``out[i, j] = <left[i], right[j]>`` in float32, queued on `stream`.

        Parameters
        ----------
        left, right : (D, ...) float32; the axes after the first are one vector.
        out : (D,D) float32, written.
        """
        count = left.shape[0]
        length = left.nbytes // (4 * max(1, count))
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        self._check("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream.handle))
        # cuBLAS counts by columns: to it our C-order (D, length) is (length, D), and what it writes
        # at (r, c) we read at [c, r]. So it is to make rightᵀ left.
        self._check(
            "cublasSgemm_v2",
            self._handle,
            _TRANSPOSE,
            _NO_TRANSPOSE,
            count,
            count,
            length,
            ctypes.byref(one),
            ctypes.c_void_p(right.pointer),
            length,
            ctypes.c_void_p(left.pointer),
            length,
            ctypes.byref(zero),
            ctypes.c_void_p(out.pointer),
            count,
        )
        out.stream = stream

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._library.cublasDestroy_v2(handle)

    def _check(self, function: str, *arguments: object) -> None:
        # ctypes releases the GIL for the length of the call.
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            meaning = _STATUS.get(status, "see cublasStatus_t")
            raise DeviceError(f"{function} failed with status {status}: {meaning}")
