"""Arrays on a device, and taking other people's arrays with no copy.

`accept` takes what a user has: NumPy; anything with DLPack (torch, CuPy, JAX, a C++ program's
capsule), on the CPU or a GPU; ``__cuda_array_interface__`` (PyCUDA's GPUArray, Numba); or a
`DevicePointer`. What comes back is a NumPy array or a `DeviceArray` over the same memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.errors import DeviceArrayError
from vitcx.kernels.gpu.cuda_modules import cuda_module
from vitcx.kernels.gpu.current_device import device_current, device_of_memory
from vitcx.kernels.gpu.streams import Stream, as_stream

# DLPack's device types.
_DLPACK_CPU, _DLPACK_CUDA, _DLPACK_CUDA_HOST, _DLPACK_CUDA_MANAGED = 1, 2, 3, 13
# DLPack's stream argument that asks for no ordering at all.
_NO_STREAM = -1


@dataclass(frozen=True)
class DevicePointer:
    """Device memory that somebody else owns, told by hand.

    Attributes
    ----------
    pointer : its address.
    shape : of a dense C-order array.
    dtype : a NumPy dtype.
    stream : the stream it was written on: None where all work on it is done.
    device : the GPU's index.
    owner : kept alive as long as the array is used; None where the caller sees to that.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: Any = np.float32
    stream: object = None
    device: int = 0
    owner: object = None


class DeviceArray(Closing):
    """A dense C-order array in device memory. A context manager; closing it twice is fine.

    Attributes
    ----------
    pointer : its address.
    shape, dtype : as NumPy's.
    device : the GPU's index.
    owned : whether closing frees the memory. Borrowed memory is never freed; its owner is kept
        alive until the array is closed.
    stream : where it was last written, None where that is done; consumers are ordered behind it.
    """

    def __init__(
        self,
        buffer: Any,
        shape: tuple[int, ...],
        dtype: Any,
        *,
        device: int,
        owned: bool,
        stream: Stream | None = None,
    ) -> None:
        self._buffer: Any = buffer
        self.pointer = int(buffer.handle)
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.device = device
        self.owned = owned
        self.stream = stream

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def closed(self) -> bool:
        return self._buffer is None

    @property
    def buffer(self) -> Any:
        """The `cuda.core` buffer."""
        if self._buffer is None:
            raise DeviceArrayError("This device array is closed")
        return self._buffer

    def part(self, start: int, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """A borrowed array over the bytes from `start` on; it keeps this one alive."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if start + size > self.nbytes:
            raise DeviceArrayError(f"Got {size} bytes from {start}, of an array of {self.nbytes}")
        owner = (self, self.buffer)
        buffer = cuda_module().Buffer.from_handle(self.pointer + start, size, owner=owner)
        return DeviceArray(
            buffer, shape, dtype, device=self.device, owned=False, stream=self.stream
        )

    def close(self, stream: Stream | None = None) -> None:
        """Free owned memory once `stream` has passed this point; forget borrowed memory."""
        buffer, self._buffer = self._buffer, None
        if buffer is None:
            return
        order = stream or self.stream
        buffer.close(order.native if self.owned and order is not None else None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_DLPACK_CUDA, self.device)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Hand the memory on, with no copy, ready on the consumer's `stream`.

        The capsule keeps the memory alive as long as nobody calls `close`. ``stream=-1`` asks for
        no ordering; None means the legacy default stream, as DLPack lays down.
        """
        if stream == 0:
            raise DeviceArrayError("DLPack forbids stream 0: give 1 (legacy) or 2 (per thread)")
        if self.stream is not None and stream != _NO_STREAM:
            consumer = as_stream(1 if stream is None else stream)
            if consumer.handle != self.stream.handle:
                with device_current(self.device):
                    consumer.wait_for(self.stream)
        views = cuda_module("cuda.core.utils").StridedMemoryView
        view = views.from_buffer(self.buffer, self.shape, dtype=self.dtype)
        return view.__dlpack__(
            stream=_NO_STREAM, max_version=max_version, dl_device=dl_device, copy=copy
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        _ = self.buffer
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "version": 3,
            "stream": None if self.stream is None else self.stream.handle or 1,
        }


def gpu_of(array: object) -> int | None:
    """The GPU's index of somebody's array that `accept` takes, None for one in host memory.

    Asked of the array without taking it: some can be taken only once, and where it is decides on
    which stream it is to be taken.

    Raises
    ------
    DeviceArrayError
        Not an array, or on a device that is neither CPU nor CUDA.
    DeviceError
        The driver must be asked, and cannot be.
    """
    if isinstance(array, np.ndarray):
        return None
    if isinstance(array, DeviceArray | DevicePointer):
        return array.device
    if hasattr(array, "__dlpack_device__"):
        kind, index = array.__dlpack_device__()
        if kind in (_DLPACK_CPU, _DLPACK_CUDA_HOST):
            return None
        if kind in (_DLPACK_CUDA, _DLPACK_CUDA_MANAGED):
            return int(index)
        raise DeviceArrayError(
            f"Got an array on DLPack device type {int(kind)}, expected the CPU or a CUDA device"
        )
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        return _described(interface).device
    raise DeviceArrayError(
        f"Got {type(array).__name__}, expected a NumPy array, an object with __dlpack__ or "
        "__cuda_array_interface__, or a DevicePointer"
    )


def accept(array: object, stream: Stream | None = None) -> NDArray[Any] | DeviceArray:
    """Somebody's array over the same memory, with no copy.

    Parameters
    ----------
    array : NumPy; anything with ``__dlpack__`` or ``__cuda_array_interface__``; a `DevicePointer`;
        a `DeviceArray`. C order.
    stream : where it will be used: made to wait for the array's producer. None leaves the order to
        the caller. A CPU array needs none.

    Returns
    -------
    a NumPy array for host memory, a borrowed `DeviceArray` for device memory, which keeps `array`
    alive.

    Raises
    ------
    DeviceArrayError
        Not an array, not in C order, or on a device that is neither CPU nor CUDA.
    DeviceError
        Device memory, and no `cuda.core`.
    """
    if isinstance(array, DeviceArray):
        if stream is not None and array.stream is not None:
            stream.wait_for(array.stream)
        return array
    if isinstance(array, np.ndarray):
        return array
    if isinstance(array, DevicePointer):
        return _borrow(array, array.owner, stream)
    gpu = gpu_of(array)
    if gpu is None:
        return _host_view(array)
    if hasattr(array, "__dlpack_device__"):
        return _from_dlpack(array, gpu, stream)
    return _borrow(_described(getattr(array, "__cuda_array_interface__", None)), array, stream)


def _host_view(array: Any) -> NDArray[Any]:
    try:
        return np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError) as error:
        raise DeviceArrayError(
            f"Got a {type(array).__name__} that NumPy cannot view through DLPack: {error}"
        ) from error


def _from_dlpack(array: Any, index: int, stream: Stream | None) -> DeviceArray:
    views = cuda_module("cuda.core.utils").StridedMemoryView
    handle = _NO_STREAM if stream is None else stream.handle or 1
    view = views.from_dlpack(array, stream_ptr=handle)
    shape = tuple(int(n) for n in view.shape)
    _check_c_order(shape, view.strides)
    size = math.prod(shape) * view.dtype.itemsize
    buffer = cuda_module().Buffer.from_handle(int(view.ptr), size, owner=view)
    return DeviceArray(buffer, shape, view.dtype, device=index, owned=False)


def _described(interface: Any) -> DevicePointer:
    """A `DevicePointer` from the dictionary of ``__cuda_array_interface__``."""
    try:
        shape = tuple(int(n) for n in interface["shape"])
        dtype = np.dtype(interface["typestr"])
        pointer = int(interface["data"][0])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DeviceArrayError(f"Got a malformed __cuda_array_interface__: {error!r}") from error
    if interface.get("mask") is not None:
        raise DeviceArrayError("Got a masked device array, expected a dense one")
    strides = interface.get("strides")
    if strides is not None:
        _check_c_order(shape, tuple(int(s) // dtype.itemsize for s in strides))
    if pointer == 0 and math.prod(shape) > 0:
        raise DeviceArrayError("Got a null device pointer for an array that is not empty")
    # The interface does not say on which GPU. An empty array has no memory to ask about.
    device = 0 if pointer == 0 else device_of_memory(pointer)
    # Version 3 names the producer's stream; before that, all work was done.
    return DevicePointer(pointer, shape, dtype, stream=interface.get("stream"), device=device)


def _borrow(pointer: DevicePointer, owner: object, stream: Stream | None) -> DeviceArray:
    producer = None if pointer.stream is None else as_stream(pointer.stream)
    if producer is not None and stream is not None and producer.handle != stream.handle:
        stream.wait_for(producer)
    dtype = np.dtype(pointer.dtype)
    size = math.prod(pointer.shape) * dtype.itemsize
    # cuda.core takes None for "nobody": then the caller keeps the memory alive.
    buffer = cuda_module().Buffer.from_handle(pointer.pointer, size, owner=owner)
    return DeviceArray(
        buffer, pointer.shape, dtype, device=pointer.device, owned=False, stream=producer
    )


def _check_c_order(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
    """Raise unless `strides`, in elements, are those of a dense C-order array."""
    if strides is None or math.prod(shape) == 0:
        return
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            raise DeviceArrayError(
                f"Got a device array of shape {shape} with strides {tuple(strides)} (in elements), "
                "expected C order: make it contiguous first"
            )
        expected *= length
