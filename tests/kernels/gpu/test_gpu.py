"""On a GPU: what the rest of tests/kernels proves about the device logic, proved of the device.

Never ran on hardware so far (docs/gpu-notes.md); test_emulated_driver.py runs them on an emulated
driver. Run: pytest -m gpu tests/kernels
"""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.distance import squareform

from vitcx.kernels.errors import DeviceArrayError, DeviceError
from vitcx.kernels.gpu import mask_kernels
from vitcx.kernels.gpu.arrays import DeviceArray, accept, gpu_of
from vitcx.kernels.gpu.blending import Blender
from vitcx.kernels.gpu.cuda_modules import cuda_module
from vitcx.kernels.gpu.device import Gpu
from vitcx.kernels.gpu.driver import find_driver
from vitcx.kernels.gpu.launcher import KernelLauncher
from vitcx.kernels.gpu.mask_space import MaskSpace
from vitcx.kernels.host.blend import DROPPED, MASKED, Perturbation, blend
from vitcx.kernels.host.noise import NoiseCache
from vitcx.runtime.method.aggregation import aggregate
from vitcx.runtime.method.masks import cosine_distances, merge_masks, vit_masks

pytestmark = pytest.mark.gpu

BLEND_TOLERANCE = 2e-6  # as on the CPU, in test_blend


@pytest.fixture(scope="module")
def device():
    try:
        gpu = Gpu()
    except DeviceError as error:
        pytest.skip(str(error))
    with gpu.current():
        yield gpu


@pytest.fixture(scope="module")
def launcher(device, tmp_path_factory):
    return KernelLauncher(device, tmp_path_factory.mktemp("cubins"))


@pytest.mark.parametrize("sharp", [False, True])
@pytest.mark.parametrize("scale", [0.0, 0.1])
@pytest.mark.parametrize(
    ("size", "grid"),
    [((224, 224), (14, 14)), ((15, 13), (4, 3)), ((9, 12), (3, 3)), ((5, 7), (8, 9))],
)
def test_blend_is_the_twin(device, launcher, size, grid, scale, sharp):
    generator = np.random.default_rng(0)
    images = generator.normal(size=(2, 3, *size)).astype(np.float32)
    masks = generator.random((6, *grid), dtype=np.float32)
    perturbations = [  # every kind, four and three at a time
        Perturbation(
            i % 2,
            i,
            i,
            2**40,
            scale,
            tuple(((place + 4 * (i % 2)), 4 * i + place) for place in range(3 if i == 3 else 4)),
            sharp,
        )
        for i in range(6)
    ]
    expected = np.zeros((24, 3, *size), np.float32)
    blend(images, masks, perturbations, expected, NoiseCache())
    with device.new_stream() as stream, Blender(device, launcher, stream) as blender:
        out = device.upload(np.zeros(expected.shape, np.float32), stream)
        for _ in range(2):
            blender.blend(list(images), list(masks), perturbations, out)
        result = device.download(out, stream)
        out.close()
    np.testing.assert_allclose(result, expected, rtol=0, atol=BLEND_TOLERANCE)


def test_batches_one_behind_the_other_do_not_mix(device, launcher):
    """The second one's images go up through the memory that the first one's are still leaving."""
    generator = np.random.default_rng(4)
    masks = list(generator.random((2, 3, 3), dtype=np.float32))
    perturbations = [Perturbation(0, i, i, 5, 0.1, ((MASKED, i),)) for i in range(2)]
    batches = [generator.normal(size=(1, 3, 96, 96)).astype(np.float32) for _ in range(6)]
    with device.new_stream() as stream, Blender(device, launcher, stream) as blender:
        outs = [device.zeros((2, 3, 96, 96), np.float32, stream) for _ in batches]
        for images, out in zip(batches, outs, strict=True):
            blender.blend(list(images), masks, perturbations, out)
        found = [device.download(out, stream) for out in outs]
        for out in outs:
            out.close()
    for images, ours in zip(batches, found, strict=True):
        expected = np.zeros((2, 3, 96, 96), np.float32)
        blend(images, masks, perturbations, expected, NoiseCache())
        np.testing.assert_allclose(ours, expected, rtol=0, atol=BLEND_TOLERANCE)


def test_an_image_on_the_device_is_read_where_it_lies(device, launcher):
    generator = np.random.default_rng(0)
    image = generator.normal(size=(3, 9, 13)).astype(np.float32)
    masks = list(generator.random((3, 4, 5), dtype=np.float32))
    perturbations = [
        Perturbation(0, i, i, 11, 0.1, ((MASKED, 2 * i), (DROPPED, 2 * i + 1)), i > 1)
        for i in range(3)
    ]
    expected = np.empty((6, 3, 9, 13), np.float32)
    blend([image], masks, perturbations, expected, NoiseCache())
    with (
        device.new_stream() as stream,
        device.upload(image, stream) as there,
        device.allocate(expected.shape, np.float32, stream) as out,
        Blender(device, launcher, stream) as blender,
    ):
        blender.blend([there], masks, perturbations, out)
        result = device.download(out, stream)
    np.testing.assert_allclose(result, expected, rtol=0, atol=BLEND_TOLERANCE)


@pytest.mark.parametrize(("grid", "size"), [((14, 14), (224, 224)), ((5, 4), (40, 37))])
def test_masks_and_maps(device, launcher, grid, size):
    generator = np.random.default_rng(1)
    embedding = generator.normal(size=(192, *grid)).astype(np.float32)
    embedding[4] = 3
    labels = np.arange(192) % 20
    labels[4] = -1
    expected = vit_masks(embedding, size)
    with device.new_stream() as stream:
        try:
            space = MaskSpace(device, launcher, stream, grid, size)
        except DeviceError as error:
            pytest.skip(str(error))
        with space:
            masks, kept, condensed = space.distances(device.upload(embedding, stream))
            assert np.flatnonzero(~kept).tolist() == [4]
            distances = squareform(condensed)[np.ix_(kept, kept)]
            np.testing.assert_allclose(distances, cosine_distances(expected, size), atol=5e-6)
            for how in ("mean", "renormalised"):
                merged = space.merge(masks, labels, how)
                clusters = merge_masks(expected, labels[kept], size, how)
                np.testing.assert_allclose(device.download(merged, stream), clusters, atol=1e-5)
            impacts = generator.normal(size=(5, 20)).astype(np.float32)
            for correct in (True, False):
                found = space.saliency(merged, impacts, correct_coverage=correct)
                wanted = aggregate(clusters, impacts, size, correct_coverage=correct)
                for ours, theirs in zip(found, wanted, strict=True):
                    np.testing.assert_allclose(device.download(ours, stream), theirs, atol=4e-5)


class OnlyDlpack:
    """Somebody's array, who knows DLPack and nothing else."""

    def __init__(self, array):
        self._array = array

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()

    def __dlpack__(self, **how):
        return self._array.__dlpack__(**how)


class OnlyInterface:
    def __init__(self, array):
        self.__cuda_array_interface__ = array.__cuda_array_interface__


@pytest.mark.parametrize("lent", [OnlyDlpack, OnlyInterface])
@pytest.mark.parametrize("shape", [(3, 40, 30), (1, 7), (5,)])
def test_arrays_on_the_device_are_taken_as_they_are_and_in_order(device, lent, shape):
    """What the lender's stream has yet to write is there when ours reads it."""
    values = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    with device.new_stream() as theirs, device.new_stream() as ours, device.new_stream() as first:
        source = device.upload(values, first)
        for _ in range(10):
            array = device.zeros(shape, np.float32, theirs)
            array.buffer.copy_from(source.buffer, stream=theirs.native)
            taken = accept(lent(array), ours)
            assert isinstance(taken, DeviceArray)
            assert (taken.pointer, taken.shape, taken.dtype) == (array.pointer, shape, np.float32)
            np.testing.assert_array_equal(device.download(taken, ours), values)
            taken.close()
            array.close()
        source.close()


def test_torch_in_and_out_without_a_copy(device):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    with device.new_stream() as stream:
        tensor = torch.arange(12, dtype=torch.float32, device="cuda").reshape(3, 4)
        taken = accept(tensor, stream)
        assert isinstance(taken, DeviceArray)
        assert taken.pointer == tensor.data_ptr()
        ours = device.upload(np.arange(6, dtype=np.float32).reshape(2, 3), stream)
        theirs = torch.from_dlpack(ours)
        assert theirs.data_ptr() == ours.pointer
        assert theirs.cpu().numpy().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_cupy_in_without_a_copy(device):
    cupy = pytest.importorskip("cupy")
    with device.new_stream() as stream:
        array = cupy.ones((2, 3), cupy.float32)
        taken = accept(array, stream)
        assert isinstance(taken, DeviceArray)
        assert taken.pointer == array.data.ptr


def test_a_cuda_graph_of_two_kernels(device, launcher):
    with device.new_stream() as stream:
        embedding = np.random.default_rng(2).normal(size=(8, 14, 14)).astype(np.float32)
        source = device.upload(embedding, stream)
        masks = device.upload(np.zeros_like(embedding), stream)
        kept = device.upload(np.zeros(8, np.int32), stream)
        launcher.prepare("masks", "vitcx_normalise")  # compiled before recording
        with device.record_cuda_graph(
            stream, lambda s: mask_kernels.normalise(launcher, source, masks, kept, (224, 224), s)
        ) as graph:
            graph.launch(stream)
            result = device.download(masks, stream)
    np.testing.assert_allclose(result, vit_masks(embedding, (224, 224)), atol=2e-6)


def test_the_gil_is_free_while_the_device_works(device):
    """A second thread goes on counting while `synchronise` waits for queued copies."""
    core = pytest.importorskip("cuda.core")
    beats, done = [0], threading.Event()

    def beat():
        while not done.is_set():
            beats[0] += 1
            time.sleep(0.0005)

    size = min(1 << 30, find_driver().gpus[0].memory_bytes // 16)
    with device.new_stream() as stream:
        a, b = (device.allocate((size,), np.uint8, stream) for _ in range(2))
        source, target = (core.Buffer.from_handle(x.pointer, size, owner=x.buffer) for x in (a, b))
        other = threading.Thread(target=beat)
        other.start()
        for _ in range(100):
            target.copy_from(source, stream=stream.native)
        before, start = beats[0], time.perf_counter()
        stream.synchronise()
        waited, during = time.perf_counter() - start, beats[0] - before
        done.set()
        other.join()
        a.close()
        b.close()
    if waited < 0.01:
        pytest.skip(f"the wait of {waited * 1000:.1f} ms was too short to tell")
    assert during >= 3


# --- several GPUs, and the current device of others -----------------------------------------------


class Interface:
    """A device array that tells ``__cuda_array_interface__`` alone, which names no GPU."""

    def __init__(self, array):
        self.array = array

    @property
    def __cuda_array_interface__(self):
        return self.array.__cuda_array_interface__


@pytest.fixture
def second(device):
    try:
        return Gpu(1)
    except DeviceError as error:
        pytest.skip(str(error))


def current_context():
    driver = cuda_module("cuda.bindings.driver")
    status, context = driver.cuCtxGetCurrent()
    assert int(status) == 0
    return int(context)


def test_opening_and_using_a_gpu_leaves_the_threads_own_as_it_was(device, second):
    before = current_context()
    assert before != 0
    Gpu(1)
    assert current_context() == before
    with second.current():
        inside = current_context()
        assert inside not in (0, before)
        with device.current():
            assert current_context() == before
        assert current_context() == inside
    assert current_context() == before

    def fail():
        with second.current():
            raise RuntimeError("in use")

    with pytest.raises(RuntimeError, match="in use"):
        fail()
    assert current_context() == before


def test_a_thread_that_had_no_gpu_has_none_afterwards(device):
    found = []

    def work():
        Gpu()
        found.append(current_context())
        with device.current():
            found.append(current_context())
        found.append(current_context())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0] == found[2] == 0
    assert found[1] != 0


def test_where_an_array_lies_is_asked_where_its_protocol_does_not_say(device, second):
    values = np.arange(6, dtype=np.float32)
    for gpu in (device, second):
        with gpu.current(), gpu.new_stream() as stream, gpu.upload(values, stream) as array:
            taken = accept(Interface(array), stream)
            assert gpu_of(Interface(array)) == taken.device == gpu.index
            np.testing.assert_array_equal(gpu.download(taken, stream), values)


def test_memory_that_is_none_is_refused(device):
    array = SimpleNamespace(
        __cuda_array_interface__={"shape": (2,), "typestr": "<f4", "data": (4096, False)}
    )
    with pytest.raises(DeviceArrayError, match="0x1000, where the driver knows no memory"):
        gpu_of(array)


def test_an_array_is_handed_on_while_another_gpu_is_current(device, second):
    with second.current(), second.new_stream() as stream, second.new_stream() as theirs:
        array = second.zeros((4,), np.float32, stream)
        with device.current():
            assert array.__dlpack__(stream=theirs.handle) is not None
        array.close()
