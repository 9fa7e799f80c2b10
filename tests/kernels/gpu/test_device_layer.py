"""The device layer with no GPU: owners, streams, taking arrays, and each kernel's arguments.

`fake_cuda` stands in for `cuda.core`; its memory is the host's, and its launches run the device
logic. That the fake has the real package's signatures is tested where that package is installed.
"""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.kernels.gpu import fake_cuda
from vitcx.kernels.errors import DeviceArrayError, DeviceError
from vitcx.kernels.gpu import arrays, cublas, cuda_modules
from vitcx.kernels.gpu.arrays import DeviceArray, DevicePointer, accept, gpu_of
from vitcx.kernels.gpu.blending import (
    PERTURBATION_DTYPE,
    Blender,
    blend_grid,
    blend_rows,
    pack_perturbations,
)
from vitcx.kernels.gpu.device import Gpu, PinnedBuffer
from vitcx.kernels.gpu.launcher import KernelLauncher
from vitcx.kernels.gpu.streams import as_stream, stream_handle
from vitcx.kernels.host.blend import DROPPED, MASKED, NOISY, Perturbation

# As in test_blend and test_masks_and_aggregation.
BLEND_TOLERANCE = 2e-6
COSINE_TOLERANCE = 5e-6
MAP_TOLERANCE = 4e-5


@pytest.fixture
def core(shim, monkeypatch):
    return fake_cuda.install(monkeypatch, shim)


class Interface:
    """Somebody's device array: ``__cuda_array_interface__`` alone, over host memory."""

    def __init__(self, array, **changes):
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": None,
            "version": 3,
            "stream": None,
            **changes,
        }


# --- importing and missing parts ------------------------------------------------------------------


def test_importing_touches_no_cuda_package():
    code = (
        "import sys, vitcx.kernels.gpu.blending, vitcx.kernels.gpu.mask_space; "
        "print([m for m in sys.modules if m == 'cuda' or m.startswith('cuda.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_threads_that_ask_while_it_is_being_imported_get_all_of_it():
    pytest.importorskip("cuda.core")
    code = """
import threading, time
from vitcx.kernels.gpu.cuda_modules import cuda_module

failures = []

def work(index):
    time.sleep(0.002 * index)  # importing takes some tenths of a second
    try:
        cuda_module().Device
    except AttributeError as error:
        failures.append(error)

threads = [threading.Thread(target=work, args=(index,)) for index in range(40)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(failures)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_cuda_core_the_error_says_what_to_install(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(cuda_modules.importlib, "import_module", missing)
    with pytest.raises(DeviceError, match=r"pip install 'vitcx\[gpu\]'") as caught:
        Gpu()
    assert "\n" not in str(caught.value)


def test_without_a_driver_the_error_says_so():
    pytest.importorskip("cuda.core")
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        load_nvidia_dynamic_lib("cuda")
    except Exception:
        with pytest.raises(DeviceError, match="No CUDA driver on this machine") as caught:
            Gpu()
        assert "\n" not in str(caught.value)
    else:
        pytest.skip("this machine has a driver")


def test_a_device_that_is_not_there(core):
    with pytest.raises(DeviceError, match="GPU 7 cannot be used: device 7") as caught:
        Gpu(7)
    assert "\n" not in str(caught.value)


def test_without_cublas_the_error_says_what_to_install(monkeypatch):
    def absent(name):
        raise RuntimeError(f"{name} not found\nmore")

    pathfinder = SimpleNamespace(load_nvidia_dynamic_lib=absent)
    monkeypatch.setattr(cublas, "cuda_module", lambda name: pathfinder)
    with pytest.raises(DeviceError, match="pip install nvidia-cublas"):
        cublas.Cublas()


# --- streams --------------------------------------------------------------------------------------


def test_an_owned_stream_is_destroyed_once(core):
    with Gpu().new_stream() as stream:
        native = stream.native
        assert stream.__cuda_stream__() == (0, native.handle)
    assert native.is_closed
    stream.close()
    with pytest.raises(DeviceArrayError, match="closed"):
        _ = stream.native


def test_a_borrowed_stream_is_left_alone_and_its_lender_kept(core):
    class Lender:
        def __cuda_stream__(self):
            return (0, 0x5000)

    lender = Lender()
    alive = weakref.ref(lender)
    stream = as_stream(lender)
    del lender
    native = stream.native
    assert (stream.handle, stream.owned) == (0x5000, False)
    assert alive() is not None
    stream.close()
    assert not native.is_closed


@pytest.mark.parametrize(
    ("given", "handle"),
    [
        (0x40, 0x40),
        (SimpleNamespace(__cuda_stream__=lambda: (0, 0x41)), 0x41),
        (SimpleNamespace(__cuda_stream__=(0, 0x42)), 0x42),
        (SimpleNamespace(cuda_stream=0x43), 0x43),
        (SimpleNamespace(ptr=0x44), 0x44),
        (SimpleNamespace(handle=0x45), 0x45),
    ],
)
def test_everybodys_streams(given, handle):
    assert stream_handle(given) == handle


@pytest.mark.parametrize("given", [None, "stream", True, 1.5])
def test_what_is_no_stream(given):
    with pytest.raises(DeviceArrayError, match="stream"):
        stream_handle(given)


def test_an_unknown_version_of_the_stream_protocol():
    with pytest.raises(DeviceArrayError, match="version 1"):
        stream_handle(SimpleNamespace(__cuda_stream__=lambda: (1, 5)))


def test_default_streams_are_cudas_own_and_never_closed(core):
    for handle, native in (
        (0, core.LEGACY_DEFAULT_STREAM),
        (1, core.LEGACY_DEFAULT_STREAM),
        (2, core.PER_THREAD_DEFAULT_STREAM),
    ):
        stream = as_stream(handle)
        assert stream.native is native
        stream.close()
        assert not native.is_closed


# --- arrays ---------------------------------------------------------------------------------------


def test_owned_memory_is_freed_once(core):
    device = Gpu()
    stream = device.new_stream()
    with device.allocate((2, 3), np.float32, stream) as array:
        assert (array.nbytes, array.owned, array.pointer % 16) == (24, True, 0)
        assert fake_cuda.Buffer.live == 1
    assert fake_cuda.Buffer.live == 0
    array.close()
    assert array.closed
    with pytest.raises(DeviceArrayError, match="closed"):
        _ = array.buffer


def test_borrowed_memory_is_never_freed_and_its_owner_kept(core):
    lender = Interface(np.ones((2, 3), np.float32))
    alive = weakref.ref(lender)
    array = accept(lender)
    assert isinstance(array, DeviceArray)
    assert (array.shape, array.dtype, array.owned) == ((2, 3), np.float32, False)
    assert array.pointer == lender.array.ctypes.data
    del lender
    gc.collect()
    assert alive() is not None
    array.close()
    array.close()
    gc.collect()
    assert alive() is None


def test_a_part_keeps_the_whole_alive(core):
    device = Gpu()
    whole = device.allocate((8,), np.float32, device.new_stream())
    part = whole.part(8, (2, 2), np.float32)
    assert (part.pointer, part.owned) == (whole.pointer + 8, False)
    with pytest.raises(DeviceArrayError, match="40 bytes"):
        whole.part(0, (10,), np.float32)


def test_numpy_goes_through(core):
    array = np.ones((2, 3), np.float32)
    assert accept(array) is array


def test_cpu_dlpack_is_viewed_not_copied():
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    view = accept(tensor)
    assert isinstance(view, np.ndarray)
    assert view.ctypes.data == tensor.data_ptr()
    tensor[0, 0] = 9
    assert view[0, 0] == 9


def test_dlpack_that_numpy_refuses():
    torch = pytest.importorskip("torch")
    with pytest.raises(DeviceArrayError, match="Tensor that NumPy cannot view"):
        accept(torch.ones(3, requires_grad=True))


def test_other_devices_are_refused():
    opencl = SimpleNamespace(__dlpack_device__=lambda: (4, 0))
    with pytest.raises(DeviceArrayError, match="device type 4"):
        accept(opencl)


def test_device_dlpack_is_taken_with_the_consumers_stream(core, monkeypatch):
    seen = {}

    class View:
        @staticmethod
        def from_dlpack(obj, stream_ptr=None):
            seen["stream"] = stream_ptr
            return SimpleNamespace(
                ptr=0x9000, shape=(2, 3), strides=(3, 1), dtype=np.dtype(np.float32)
            )

    utils = SimpleNamespace(StridedMemoryView=View)
    monkeypatch.setattr(
        arrays, "cuda_module", lambda name="cuda.core": utils if "utils" in name else core
    )
    theirs = SimpleNamespace(__dlpack_device__=lambda: (2, 1), __dlpack__=None)
    array = accept(theirs)
    assert isinstance(array, DeviceArray)
    assert (array.pointer, array.shape, array.device) == (0x9000, (2, 3), 1)
    assert seen["stream"] == -1
    stream = Gpu().new_stream()
    accept(theirs, stream)
    assert seen["stream"] == stream.handle


def test_where_an_array_lies_is_known_before_it_is_taken(core):
    device = Gpu()
    ours = device.allocate((2,), np.float32, device.new_stream())
    for kind, expected in ((1, None), (3, None), (2, 4), (13, 4)):
        lender = SimpleNamespace(__dlpack_device__=lambda kind=kind: (kind, 4))  # no __dlpack__
        assert gpu_of(lender) == expected
    assert gpu_of(np.ones(3)) is None
    assert gpu_of(ours) == 0
    assert gpu_of(DevicePointer(0x1000, (3,), device=2)) == 2
    assert gpu_of(Interface(np.ones(3, np.float32))) == 0
    for wrong in ([1, 2], SimpleNamespace(__dlpack_device__=lambda: (4, 0))):
        with pytest.raises(DeviceArrayError, match="Got"):
            gpu_of(wrong)


def test_the_producers_stream_is_waited_for(core):
    stream = Gpu().new_stream()
    accept(Interface(np.ones(3, np.float32), stream=0x88), stream)
    assert stream.native.waits == [0x88]
    pointer = DevicePointer(0x1000, (3,), np.float32, stream=0x99)
    array = accept(pointer, stream)
    assert stream.native.waits == [0x88, 0x99]
    accept(array, stream)
    assert stream.native.waits == [0x88, 0x99, 0x99]
    accept(DevicePointer(0x1000, (3,), np.float32, stream=stream), stream)
    assert len(stream.native.waits) == 3  # its own stream


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"typestr": "??"}, "malformed"),
        ({"data": None}, "malformed"),
        ({"mask": object()}, "masked"),
        ({"strides": (4, 8)}, "C order"),
        ({"data": (0, False)}, "null"),
    ],
)
def test_bad_interfaces(changes, message, core):
    with pytest.raises(DeviceArrayError, match=message):
        accept(Interface(np.ones((2, 3), np.float32), **changes))


def test_c_order_strides_pass_and_length_one_axes_do_not_count(core):
    accept(Interface(np.ones((2, 3), np.float32), strides=(12, 4)))
    accept(Interface(np.ones((1, 3), np.float32), strides=(999 * 4, 4)))
    accept(Interface(np.ones((0, 3), np.float32), strides=(4, 4), data=(0, False)))


def test_what_is_no_array():
    with pytest.raises(DeviceArrayError, match="Got list"):
        accept([1, 2])


def test_interface_out_names_the_stream(core):
    device = Gpu()
    stream = device.new_stream()
    array = device.allocate((2, 2), np.float16, stream)
    described = array.__cuda_array_interface__
    assert described["stream"] == stream.handle
    again = accept(SimpleNamespace(__cuda_array_interface__=described))
    assert isinstance(again, DeviceArray)
    assert (again.pointer, again.shape, again.dtype) == (array.pointer, (2, 2), np.float16)


def test_dlpack_out_orders_the_consumer_behind_us(core, monkeypatch):
    calls = []

    class View:
        @staticmethod
        def from_buffer(buffer, shape, strides=None, *, dtype=None):
            return SimpleNamespace(__dlpack__=lambda **kw: calls.append((shape, kw["stream"])))

    utils = SimpleNamespace(StridedMemoryView=View)
    monkeypatch.setattr(
        arrays, "cuda_module", lambda name="cuda.core": utils if "utils" in name else core
    )
    device = Gpu()
    ours = device.new_stream()
    array = device.allocate((4,), np.float32, ours)
    assert array.__dlpack_device__() == (2, 0)
    array.__dlpack__(stream=-1)
    assert core.LEGACY_DEFAULT_STREAM.waits == []
    array.__dlpack__()
    assert core.LEGACY_DEFAULT_STREAM.waits == [ours.handle]
    array.__dlpack__(stream=2)
    assert core.PER_THREAD_DEFAULT_STREAM.waits == [ours.handle]
    array.__dlpack__(stream=ours.handle)
    assert ours.native.waits == []
    assert calls == [((4,), -1)] * 4
    with pytest.raises(DeviceArrayError, match="stream 0"):
        array.__dlpack__(stream=0)


# --- transfers and CUDA graphs --------------------------------------------------------------------


def test_up_and_down_again(core):
    device = Gpu()
    stream = device.new_stream()
    for array in (
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.zeros((0, 3), np.float32),
        np.array([7], np.int32),
    ):
        with device.upload(array, stream) as there:
            assert np.array_equal(device.download(there, stream), array)
    assert fake_cuda.Buffer.live == 0


def test_zeros_are_zero(core):
    device = Gpu()
    stream = device.new_stream()
    with device.zeros((2, 3), np.float32, stream) as zeros:
        assert not device.download(zeros, stream).any()


def test_the_compute_capability_is_said_as_nvidia_says_it(core, monkeypatch):
    assert Gpu().compute_capability == "9.0"
    monkeypatch.setattr(fake_cuda.Device, "arch", "120")
    assert Gpu().compute_capability == "12.0"


def test_pinned_memory_is_freed_once(core):
    with PinnedBuffer(10) as pinned:
        pinned.bytes[:] = 1
        assert fake_cuda.Buffer.live == 1
    pinned.close()
    assert fake_cuda.Buffer.live == 0


def test_a_cuda_graph_records_then_launches(core):
    device = Gpu()
    stream = device.new_stream()
    seen = []
    with device.record_cuda_graph(stream, seen.append) as graph:
        native = graph._native
        assert [s.owned for s in seen] == [False]
        graph.launch(stream)
        graph.launch(stream)
        assert native.launches == 2
    graph.close()
    assert native.is_closed
    with pytest.raises(DeviceArrayError, match="closed"):
        graph.launch(stream)


# --- kernels --------------------------------------------------------------------------------------


def test_the_layout_of_a_perturbation():
    rows = ((MASKED, 0), (DROPPED, 4), (NOISY, 5))
    packed = pack_perturbations([Perturbation(1, 2, 3, 2**63, 0.5, rows, sharp=True)])
    assert PERTURBATION_DTYPE.itemsize == 48
    assert PERTURBATION_DTYPE.fields["rows"][1] == 24
    assert packed["seed"][0] == 2**63
    assert packed["rows"][0].tolist() == [0, 4, 5, -1]
    assert packed["kinds"][0].tolist() == [MASKED, DROPPED, NOISY, 0]
    assert packed["sharp"][0] == 1


@pytest.mark.parametrize(
    ("perturbations", "resident", "expected"), [(64, 528, (49, 64, 1)), (4, 528, (49, 4, 3))]
)
def test_blend_grid(perturbations, resident, expected):
    """224 x 224 in runs of 4: 12544 threads, 49 blocks of 256."""
    assert blend_grid((224, 224), 3, perturbations, resident) == expected


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("grid", [(4, 5), (9, 10)])
def test_what_is_reserved_is_enough_for_any_batch_of_so_many_rows(core, rows, grid):
    """An image of its own and a mask of its own for each row is the most there can be. Occlusion's
    masks are as fine as the image.
    """
    generator = np.random.default_rng(rows)
    images = list(generator.random((rows, 3, 9, 10), dtype=np.float32))
    masks = list(generator.random((rows, *grid), dtype=np.float32))
    perturbations = [Perturbation(i, i, i, 11, 0.1, ((MASKED, i),)) for i in range(rows)]
    device = Gpu()
    with (
        device.new_stream() as stream,
        device.allocate((rows, 3, 9, 10), np.float32, stream) as out,
        Blender(device, KernelLauncher(device), stream) as blender,
    ):
        blender.reserve((rows, 3, 9, 10))
        held = fake_cuda.Buffer.live_device_bytes
        core.Device.memory_bytes = held
        try:
            blender.blend(images, masks, perturbations, out)
            blender.blend(images[:1], masks, [replace(j, image=0) for j in perturbations], out)
        finally:
            core.Device.memory_bytes = None
        assert fake_cuda.Buffer.live_device_bytes == held


def test_a_batch_of_the_wrong_shape_is_refused(core):
    device = Gpu()
    stream = device.new_stream()
    images = device.upload(np.zeros((1, 3, 8, 8), np.float32), stream)
    masks = device.upload(np.zeros((1, 2, 2), np.float32), stream)
    perturbations = device.upload(
        pack_perturbations(
            [
                Perturbation(
                    0,
                    0,
                    0,
                    0,
                    0.1,
                    (
                        (MASKED, 0),
                        (NOISY, 1),
                    ),
                )
            ]
        ),
        stream,
    )
    for shape, held in (((2, 3, 8, 9), np.float32), ((2, 3, 8, 8), np.float16)):
        out = device.allocate(shape, held, stream)
        with pytest.raises(DeviceArrayError, match="batch of shape"):
            blend_rows(KernelLauncher(device), images, masks, perturbations, out, stream)


def test_cublas_is_called_by_columns(monkeypatch):
    """A stand-in sgemm that reads as cuBLAS does: column by column."""
    import ctypes

    def view(pointer, rows, columns):
        kind = ctypes.c_float * (rows * columns)
        return np.frombuffer(kind.from_address(pointer.value), np.float32).reshape(columns, rows).T

    def sgemm(handle, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        assert (ta, tb) == (1, 0)
        view(c, ldc, n)[:m] = view(a, lda, m)[:k].T @ view(b, ldb, n)[:k]
        return 0

    closed = []
    library = SimpleNamespace(
        cublasCreate_v2=lambda handle: 0,
        cublasDestroy_v2=closed.append,
        cublasSetStream_v2=lambda handle, stream: 0,
        cublasSgemm_v2=sgemm,
    )
    loaded = SimpleNamespace(load_nvidia_dynamic_lib=lambda name: SimpleNamespace(abs_path="x"))
    monkeypatch.setattr(cublas, "cuda_module", lambda name: loaded)
    monkeypatch.setattr(cublas.ctypes, "CDLL", lambda path: library)
    generator = np.random.default_rng(0)
    left = generator.normal(size=(3, 2, 2)).astype(np.float32)
    right = generator.normal(size=(3, 2, 2)).astype(np.float32)
    out = np.zeros((3, 3), np.float32)

    def array(a):
        return SimpleNamespace(shape=a.shape, nbytes=a.nbytes, pointer=a.ctypes.data)

    target = array(out)
    with cublas.Cublas() as handle:
        handle.inner_products(array(left), array(right), target, SimpleNamespace(handle=5))
        np.testing.assert_allclose(out, left.reshape(3, -1) @ right.reshape(3, -1).T, rtol=1e-6)
        library.cublasSgemm_v2 = lambda *a: 13
        with pytest.raises(DeviceError, match="cublasSgemm_v2 failed with status 13: execution"):
            handle.inner_products(array(left), array(right), target, SimpleNamespace(handle=5))
    handle.close()
    assert len(closed) == 1


# --- the fake against the real package ------------------------------------------------------------


def test_fake_is_honest():
    """Every public method of the fake is in `cuda.core`, with parameters of the same names."""
    core = pytest.importorskip("cuda.core")
    graph = pytest.importorskip("cuda.core.graph")
    for kind in (
        fake_cuda.Stream,
        fake_cuda.Event,
        fake_cuda.Buffer,
        fake_cuda.Device,
        fake_cuda.Graph,
        fake_cuda.GraphBuilder,
        fake_cuda.ObjectCode,
        fake_cuda.LegacyPinnedMemoryResource,
    ):
        real = getattr(core, kind.__name__, None) or getattr(graph, kind.__name__)
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if name.startswith("_") and "dlpack" not in name:
                continue
            ours = inspect.signature(method).parameters
            theirs = inspect.signature(getattr(real, name)).parameters
            for parameter in ours.values():
                if parameter.name == "self":
                    continue
                assert parameter.name in theirs, (kind.__name__, name, parameter.name)
                assert parameter.kind == theirs[parameter.name].kind, (kind.__name__, name)
    config = core.LaunchConfig(grid=(3, 2, 1), block=256)
    assert (config.grid, config.block) == ((3, 2, 1), (256, 1, 1))
    assert hasattr(core.Kernel, "occupancy")
    assert hasattr(core, "LEGACY_DEFAULT_STREAM")
    assert hasattr(core, "PER_THREAD_DEFAULT_STREAM")
    launch = list(inspect.signature(core.launch).parameters)
    assert launch[:3] == ["stream", "config", "kernel"]


def test_views_have_the_parameters_we_use():
    utils = pytest.importorskip("cuda.core.utils")
    view = utils.StridedMemoryView
    assert {"buffer", "shape", "dtype"} <= set(inspect.signature(view.from_buffer).parameters)
    assert "stream_ptr" in inspect.signature(view.from_dlpack).parameters
    dlpack = {"stream", "max_version", "dl_device", "copy"}
    assert dlpack <= set(inspect.signature(view.__dlpack__).parameters)
    for attribute in ("ptr", "shape", "strides", "dtype"):
        assert hasattr(view, attribute)
