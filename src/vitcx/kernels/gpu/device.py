"""One GPU: opening it, memory, streams, transfers, CUDA graphs. On `cuda.core`.

Nothing here is touched until `Gpu` is made: importing works on a machine with no driver, and `Gpu`
says in one line what is missing. Never ran on hardware so far: see docs/gpu-notes.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.errors import DeviceArrayError, DeviceError, first_line
from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.cuda_modules import cuda_module
from vitcx.kernels.gpu.current_device import device_kept
from vitcx.kernels.gpu.streams import Stream


class Gpu:
    """A CUDA device.

    Everything but `current` and `make_current` needs it to be the calling thread's current device.
    Opening it leaves the thread's as it was.

    Parameters
    ----------
    index : of the device.

    Attributes
    ----------
    name : the product's name.
    arch : such as ``sm_90``.
    compute_capability : such as ``9.0``.
    processors : how many multiprocessors it has.

    Raises
    ------
    DeviceError
        No `cuda.core`, no driver, or no such device.
    """

    def __init__(self, index: int = 0) -> None:
        core = cuda_module()
        try:
            self._device = core.Device(index)  # this finds out whether there is a driver
            with device_kept():
                self._device.set_current()
        except Exception as error:
            raise DeviceError(_why_unusable(index, error)) from error
        self.index = index
        self.name = str(self._device.name)
        arch = str(self._device.arch)
        self.arch = f"sm_{arch}"
        self.compute_capability = f"{arch[:-1]}.{arch[-1]}"
        self.processors = int(self._device.properties.multiprocessor_count)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make this the calling thread's device, and give the thread back the one that it had."""
        with device_kept():
            self._device.set_current()
            yield

    def make_current(self) -> None:
        """Make this the calling thread's device for good: for a thread of one's own."""
        self._device.set_current()

    def new_stream(self) -> Stream:
        """An owned stream, which does not wait for the legacy default stream."""
        return Stream(self._device.create_stream(), owned=True)

    def allocate(self, shape: tuple[int, ...], dtype: Any, stream: Stream) -> DeviceArray:
        """Owned device memory, not initialised, from the device's pool; `stream` orders it.

        A pool's memory is aligned to 256 bytes: the kernels' 16-byte stores apply.
        """
        size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
        buffer = self._device.allocate(size, stream=stream.native)
        return DeviceArray(buffer, shape, dtype, device=self.index, owned=True, stream=stream)

    def zeros(self, shape: tuple[int, ...], dtype: Any, stream: Stream) -> DeviceArray:
        """Owned device memory whose bytes are 0 once `stream` has passed this point."""
        result = self.allocate(shape, dtype, stream)
        result.buffer.fill(0, stream=stream.native)
        return result

    def upload(self, array: NDArray[Any], stream: Stream) -> DeviceArray:
        """An owned copy of a NumPy array on the device, queued on `stream`.

        The bytes go through pinned memory that is freed in stream order: `array` may change as soon
        as this returns.
        """
        source = np.ascontiguousarray(array)
        result = self.allocate(source.shape, source.dtype, stream)
        with PinnedBuffer(source.nbytes) as pinned:
            pinned.write(source)
            pinned.copy_to(result, stream)
            stream.synchronise()  # the pinned memory goes away with this block
        return result

    def download(self, array: DeviceArray, stream: Stream) -> NDArray[Any]:
        """A copy on the host. Blocks until it is there."""
        with PinnedBuffer(array.nbytes) as pinned:
            pinned.copy_from(array, stream)
            stream.synchronise()
            return pinned.read(array.shape, array.dtype)

    def record_cuda_graph(self, stream: Stream, work: Callable[[Stream], None]) -> CudaGraph:
        """Record what `work` queues on the stream it is given into a CUDA graph; nothing runs yet.

        The buffers that the work names are part of it and must outlive it.
        """
        builder = stream.native.create_graph_builder()
        try:
            builder.begin_building()
            work(Stream(builder.stream, owned=False))
            return CudaGraph(builder.end_building().complete())
        finally:
            builder.close()


class CudaGraph(Closing):
    """Recorded device work that is launched as one. A context manager; closing twice is fine."""

    def __init__(self, native: Any) -> None:
        self._native: Any = native

    def launch(self, stream: Stream) -> None:
        """Queue the whole of it on `stream`."""
        if self._native is None:
            raise DeviceArrayError("This CUDA graph is closed")
        self._native.launch(stream.native)

    def close(self) -> None:
        native, self._native = self._native, None
        if native is not None:
            native.close()


class PinnedBuffer(Closing):
    """Page-locked host memory: the kind that copies to a device without a detour.

    Keep one for transfers that repeat. A context manager; closing twice is fine.

    Attributes
    ----------
    bytes : (size,) uint8, the memory as NumPy sees it. Not to be used after `close`.
    """

    def __init__(self, size: int) -> None:
        core = cuda_module()
        resource = core.LegacyPinnedMemoryResource()
        self._buffer: Any = resource.allocate(max(1, size), stream=core.LEGACY_DEFAULT_STREAM)
        # By address and not by DLPack, which older NumPys make read-only.
        memory = (ctypes.c_uint8 * max(1, size)).from_address(int(self._buffer.handle))
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array(memory)

    def write(self, array: NDArray[Any], start: int = 0) -> None:
        """Put an array's bytes into this memory, from the byte `start` on."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.bytes[start : start + flat.nbytes] = flat

    def read(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """A copy of the array at the start of this memory."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        found: NDArray[Any] = self.bytes[:size].view(dtype).reshape(shape).copy()
        return found

    def copy_to(self, array: DeviceArray, stream: Stream, start: int = 0) -> None:
        """Queue ``array.nbytes`` bytes, from the byte `start` on, to the device."""
        self._copy(array, stream, start, to_device=True)

    def copy_from(self, array: DeviceArray, stream: Stream) -> None:
        """Queue the array's bytes to the start of this memory."""
        self._copy(array, stream, 0, to_device=False)

    def _copy(self, array: DeviceArray, stream: Stream, start: int, *, to_device: bool) -> None:
        # cuda.core copies whole buffers of equal size; a borrowed view cuts this one to length.
        core = cuda_module()
        if array.nbytes == 0:
            return
        begin = int(self._buffer.handle) + start
        part = core.Buffer.from_handle(begin, array.nbytes, owner=self._buffer)
        whole = core.Buffer.from_handle(array.pointer, array.nbytes, owner=array.buffer)
        if to_device:
            whole.copy_from(part, stream=stream.native)
            array.stream = stream
        else:
            part.copy_from(whole, stream=stream.native)

    def close(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.close()


def _why_unusable(index: int, error: Exception) -> str:
    reason = first_line(error)
    if "DynamicLib" in type(error).__name__:
        return f"No CUDA driver on this machine: install NVIDIA's driver ({reason})"
    return f"GPU {index} cannot be used: {reason}. `nvidia-smi` lists the devices there are"
