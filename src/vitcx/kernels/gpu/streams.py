"""Streams, ours and other people's.

A stream that was made here is owned: leaving its `with` destroys it. A stream that came from torch,
CuPy, PyCUDA, TensorRT or C++ is borrowed: it is used, and never destroyed.
"""

from __future__ import annotations

from typing import Any

from vitcx.kernels.closing import Closing
from vitcx.kernels.errors import DeviceArrayError
from vitcx.kernels.gpu.cuda_modules import cuda_module

# The addresses by which CUDA, and DLPack after it, name the two default streams.
LEGACY_DEFAULT = 1
PER_THREAD_DEFAULT = 2


class Stream(Closing):
    """A CUDA stream. A context manager; closing it twice is fine.

    Attributes
    ----------
    handle : its address (``cudaStream_t``), what C, TensorRT and ONNX Runtime want.
    owned : whether closing destroys it.
    """

    def __init__(self, native: Any, *, owned: bool, lender: object = None) -> None:
        self._native: Any = native
        self._lender = lender  # alive as long as this is, so that its stream is too
        self.owned = owned
        self.handle = int(native.handle)

    @property
    def native(self) -> Any:
        """The `cuda.core` stream."""
        if self._native is None:
            raise DeviceArrayError("This stream is closed; make another")
        return self._native

    @property
    def closed(self) -> bool:
        return self._native is None

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, int(self.native.handle))

    def wait_for(self, other: object) -> None:
        """Order what is queued here from now on behind what `other` holds now; nobody blocks."""
        self.native.wait(as_stream(other).native)

    def record(self, *, timed: bool = False) -> Any:
        """An event (`cuda.core.Event`) behind what is queued; two timed ones subtract to ms."""
        options = cuda_module().EventOptions(timing_enabled=True) if timed else None
        return self.native.record(options=options)

    def synchronise(self) -> None:
        """Block until the stream is empty. Other Python threads run meanwhile."""
        self.native.sync()

    def close(self) -> None:
        native, self._native = self._native, None
        if native is not None and self.owned:
            native.close()


def stream_handle(stream: object) -> int:
    """The address of somebody's stream.

    Parameters
    ----------
    stream : an int; or an object with ``__cuda_stream__`` (cuda.core, torch, CuPy), or the
        attribute ``cuda_stream`` (older torch), ``ptr`` (older CuPy) or ``handle`` (PyCUDA).
    """
    if isinstance(stream, bool):
        raise DeviceArrayError("Got a bool where a stream was expected")
    if isinstance(stream, int):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        # A tuple from a method; some libraries made it an attribute.
        version, handle = protocol() if callable(protocol) else protocol
        if version != 0:
            raise DeviceArrayError(f"Got version {version} of __cuda_stream__, expected 0")
        return int(handle)
    for name in ("cuda_stream", "ptr", "handle"):
        value = getattr(stream, name, None)
        if value is not None:
            return int(value)
    raise DeviceArrayError(
        f"Got {type(stream).__name__} where a CUDA stream was expected: give its address as an "
        "int, or an object with __cuda_stream__"
    )


def as_stream(stream: object) -> Stream:
    """`stream` as a `Stream`: one of ours as it is, anything else borrowed."""
    if isinstance(stream, Stream):
        return stream
    core = cuda_module()
    handle = stream_handle(stream)
    if handle in (0, LEGACY_DEFAULT):
        return Stream(core.LEGACY_DEFAULT_STREAM, owned=False)
    if handle == PER_THREAD_DEFAULT:
        return Stream(core.PER_THREAD_DEFAULT_STREAM, owned=False)
    return Stream(core.Stream.from_handle(handle), owned=False, lender=stream)
