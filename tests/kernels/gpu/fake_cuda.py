"""A stand-in for `cuda.core` whose device memory is host memory.

Launching a kernel runs its device logic through the g++ shim, so the binding's argument order,
element types and grids are tested for what they compute. Every name and parameter here exists in
the real package: test_fake_is_honest compares the signatures.
"""

from __future__ import annotations

import ctypes
import re
import threading
import time
import weakref
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from tests.kernels.conftest import CUDA_SOURCES
from vitcx.kernels.errors import DeviceError

_KERNEL = re.compile(r"__launch_bounds__\((\d+)\)\s*(\w+)\(([^)]*)\)")


def kernel_parameters():
    """{kernel: (largest block, [is_pointer, ...])}, read from the sources."""
    found = {}
    for path in sorted(CUDA_SOURCES.glob("*.cu")):
        for bound, name, parameters in _KERNEL.findall(path.read_text().replace("\\\n", "\n")):
            found[name] = (int(bound), ["*" in p for p in parameters.split(",")])
    return found


class FakeDriverError(Exception):
    """As `cuda.core`'s CUDAError."""


_CURRENT = threading.local()  # as `cuda.core` has it, and the driver's bindings


class Driver:
    """Of `cuda.bindings.driver`: contexts are numbers of devices."""

    class CUpointer_attribute:
        CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9

    @staticmethod
    def cuInit(Flags):
        return (0,)

    @staticmethod
    def cuCtxGetCurrent():
        return 0, getattr(_CURRENT, "device", None)

    @staticmethod
    def cuCtxSetCurrent(ctx):
        _CURRENT.device = ctx
        return (0,)

    @staticmethod
    def cuPointerGetAttribute(attribute, ptr):
        return 0, 0


_CREATED = []  # streams, since `install`
_STREAMS = weakref.WeakValueDictionary()


class Stream:
    """Records what is asked of it. What is queued runs at once, or is captured."""

    _next = 0x1000

    def __init__(self, handle=None):
        if handle is None:
            Stream._next += 0x10
            handle = Stream._next
        self.handle = handle
        self.is_closed = False
        self.waits = []
        self.captured = None  # the work of the graph being recorded
        _STREAMS[handle] = self

    @staticmethod
    def from_handle(handle):
        return Stream(handle)

    def wait(self, event_or_stream):
        self.waits.append(int(event_or_stream.handle))

    def record(self, event=None, options=None):
        return Event(timed=options is not None and options.timing_enabled)

    def sync(self):
        if self.captured is not None:
            raise FakeDriverError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    def close(self):
        if self.is_closed:
            raise FakeDriverError("closed twice")
        self.is_closed = True

    def create_graph_builder(self):
        return GraphBuilder(self)


def queue(handle, work):
    """What another stand-in queues on the stream at `handle`: it runs now, or is captured."""
    stream = _STREAMS[handle]
    assert not stream.is_closed
    if stream.captured is None:
        work()
    else:
        stream.captured.append(work)


def is_capturing(handle):
    return _STREAMS[handle].captured is not None


class Event:
    handle = 0x77

    def __init__(self, timed=False):
        self._seconds = time.perf_counter() if timed else None

    def sync(self):
        pass

    def __sub__(self, other):
        """Milliseconds."""
        if self._seconds is None or other._seconds is None:
            raise RuntimeError("both Events must be created with timing enabled")
        return 1000 * (self._seconds - other._seconds)


class EventOptions:
    def __init__(self, timing_enabled=False):
        self.timing_enabled = timing_enabled


class Graph:
    refusal = None  # what a launch raises
    made: ClassVar[list] = []  # since `install`

    def __init__(self, work):
        Graph.made.append(self)
        self.work = work
        self.launches = 0
        self.is_closed = False

    def launch(self, stream):
        assert not self.is_closed
        if Graph.refusal is not None:
            raise FakeDriverError(Graph.refusal)
        self.launches += 1
        for piece in self.work:
            piece()

    def close(self):
        self.is_closed = True
        self.work = []


class GraphBuilder:
    def __init__(self, stream):
        self.stream = stream
        self.state = "new"

    def begin_building(self, mode="relaxed"):
        assert self.state == "new"
        self.state = "building"
        self.stream.captured = []
        return self

    def end_building(self):
        assert self.state == "building"
        self.state = "ended"
        self._work, self.stream.captured = self.stream.captured, None
        return self

    def complete(self, options=None):
        assert self.state == "ended"
        return Graph(self._work)

    def close(self):
        self.state = "closed"
        self.stream.captured = None


class Buffer:
    """Host memory with a device's face."""

    live = 0  # owned buffers not yet freed
    live_device_bytes = 0

    def __init__(self, handle, size, owner=None, memory=None, on_device=False):
        self.handle, self.size, self.owner, self._memory = handle, size, owner, memory
        self.is_closed = False
        self._device_bytes = size if on_device else 0
        Buffer.live += memory is not None
        Buffer.live_device_bytes += self._device_bytes

    @staticmethod
    def from_handle(ptr, size, mr=None, owner=None, *, stream=None):
        return Buffer(ptr, size, owner)

    def close(self, stream=None):
        if self.is_closed:
            raise FakeDriverError("closed twice")
        self.is_closed = True
        Buffer.live -= self._memory is not None
        Buffer.live_device_bytes -= self._device_bytes

    def fill(self, value, *, stream):
        assert not self.is_closed
        ctypes.memset(self.handle, value, self.size)

    def copy_from(self, src, *, stream, options=None):
        assert src.size == self.size, "cuda.core copies whole buffers"
        assert not self.is_closed
        assert not src.is_closed
        ctypes.memmove(self.handle, src.handle, self.size)


def owned_buffer(size, on_device=False):
    memory = np.full(size + 512, 0xAB, np.uint8)  # not zeros: fresh device memory is not
    start = memory.ctypes.data
    return Buffer(start + -start % 256, size, memory=memory, on_device=on_device)


class LegacyPinnedMemoryResource:
    def allocate(self, size, *, stream=None):
        return owned_buffer(size)


class Device:
    device_id = 0
    name = "Fake GPU"
    arch = "90"
    properties = SimpleNamespace(multiprocessor_count=4)
    memory_bytes = None  # None has no limit

    def __init__(self, device_id=None):
        if device_id not in (0, None):
            raise FakeDriverError(f"device {device_id} does not exist\nsecond line")

    def set_current(self, ctx=None):
        _CURRENT.device = self.device_id

    def create_stream(self, obj=None, options=None):
        stream = Stream()
        _CREATED.append(stream)
        return stream

    def allocate(self, size, *, stream):
        limit = Device.memory_bytes
        if limit is not None and Buffer.live_device_bytes + size > limit:
            raise FakeDriverError("CUDA_ERROR_OUT_OF_MEMORY: The API call failed\nmore")
        return owned_buffer(size, on_device=True)


class LaunchConfig:
    def __init__(self, grid=None, cluster=None, block=None, shmem_size=None):
        self.grid, self.block = grid, block


class ObjectCode:
    @staticmethod
    def from_cubin(module, *, name="", symbol_mapping=None):
        assert isinstance(module, bytes)
        return ObjectCode()

    def get_kernel(self, name):
        return SimpleNamespace(
            name=name,
            occupancy=SimpleNamespace(
                max_active_blocks_per_multiprocessor=lambda block_size, shared: 4
            ),
        )


def install(monkeypatch, shim):
    """Put the stand-in where the device layer takes `cuda.core` from; returns its module."""
    from vitcx.kernels.gpu import arrays, current_device, launcher, mask_space, streams
    from vitcx.kernels.gpu import device as gpu

    fake = FakeCore(shim)

    def module(name="cuda.core"):
        return {"cuda.core": fake, "cuda.bindings.driver": Driver}[name]

    for user in (arrays, current_device, gpu, launcher, streams):
        monkeypatch.setattr(user, "cuda_module", module)
    monkeypatch.setattr(launcher, "cubin", lambda unit, arch, cache: b"cubin")
    monkeypatch.setattr(mask_space, "Cublas", no_cublas)  # `Cublas` is for who wants one
    Buffer.live = Buffer.live_device_bytes = 0
    _CREATED.clear()
    Graph.made = []
    return fake


class FakeCore:
    """The module. `shim` runs the kernels; `launches` lists (kernel, grid, block).

    `streams` are those that devices have created.
    """

    def __init__(self, shim):
        self._shim = shim
        self._parameters = kernel_parameters()
        self.launches = []
        self.streams = _CREATED
        self.LEGACY_DEFAULT_STREAM = Stream(1)
        self.PER_THREAD_DEFAULT_STREAM = Stream(2)
        for kind in (
            Stream,
            Buffer,
            Device,
            EventOptions,
            LaunchConfig,
            LegacyPinnedMemoryResource,
            ObjectCode,
        ):
            setattr(self, kind.__name__, kind)

    def launch(self, stream, config, kernel, *kernel_args):
        bound, pointers = self._parameters[kernel.name]
        assert config.block <= bound
        assert len(kernel_args) == len(pointers)
        for value, is_pointer in zip(kernel_args, pointers, strict=True):
            # A Python int goes over as 8 bytes, a NumPy scalar as its own size.
            assert isinstance(value, int if is_pointer else np.int32), (kernel.name, kernel_args)
        self.launches.append((kernel.name, config.grid, config.block))
        # Arguments arrive as the launcher's, in the kernel's order.
        arguments = [
            ctypes.c_void_p(v) if p else int(v) for v, p in zip(kernel_args, pointers, strict=True)
        ]
        getattr(self, f"_{kernel.name.removeprefix('vitcx_')}")(config, arguments)

    def _covers(self, config, items):
        """The grid's x covers `items` threads, with less than a block to spare."""
        threads = config.grid[0] * config.block
        assert items <= threads < items + config.block

    def _blend(self, config, a):
        _, _, _, _, count, channels, height, width, _, _ = a
        self._covers(config, -(-width // 4) * height)
        assert config.grid[1] == count
        assert 1 <= config.grid[2] <= channels
        self._shim("blend_arguments", *a)

    def _normalise(self, config, a):
        self._shim("normalise", *a[:3], config.grid[0], *a[3:])

    def _gram_apply(self, config, a):
        self._covers(config, a[4] * a[5] * a[6])
        self._shim("gram_apply", *a)

    def _cosine_distance(self, config, a):
        assert config.grid[1] == a[1] - 1
        self._covers(config, a[1])
        self._shim("cosine_distance", a[0], config.grid[2], a[1])

    def _complete_linkage(self, config, a):
        assert config.block % 32 == 0
        self._shim("complete_linkage", *a[:7], config.grid[0], a[7])

    def _cluster_masks(self, config, a):
        assert config.grid[0] == a[6]
        self._shim("cluster_masks", *a[:6], config.grid[1], *a[6:])


def no_cublas():
    raise DeviceError("cuBLAS is not on this machine")


class Cublas:
    """Stands in for `vitcx.kernels.gpu.cublas.Cublas`."""

    def inner_products(self, left, right, out, stream):
        def read(array):
            values = (ctypes.c_float * (array.nbytes // 4)).from_address(array.pointer)
            return np.frombuffer(values, np.float32).reshape(array.shape[0], -1)

        read(out)[...] = read(left) @ read(right).T

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass
