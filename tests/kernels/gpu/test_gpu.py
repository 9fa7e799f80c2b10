"""On a GPU: what the rest of tests/kernels proves about the device logic, proved of the device.

Never ran on hardware so far (docs/gpu-notes.md); test_emulated_driver.py runs them on an emulated
driver. Run: pytest -m gpu tests/kernels
"""

from __future__ import annotations

import contextlib
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

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
from vitcx.kernels.mask_order import MaskOrder
from vitcx.runtime.method.aggregation import aggregate
from vitcx.runtime.method.clustering import cluster
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


@pytest.mark.parametrize(
    ("grid", "size", "count"),
    [((7, 7), (112, 112), 40), ((5, 4), (40, 37), 20), ((3, 3), (30, 30), 1)],
)
def test_masks_are_made_and_clustered(device, launcher, grid, size, count):
    generator = np.random.default_rng(1)
    patterns = generator.normal(size=(2, 12, *grid))
    mixed = np.einsum("ndk,nkhw->ndhw", generator.normal(size=(2, count, 12)), patterns)
    embedding = np.zeros((4, count, *grid), np.float32)
    embedding[:2] = mixed + 0.2 * generator.normal(size=mixed.shape)
    if count > 1:
        embedding[0, 4] = 3  # constant
    embedding[2] = embedding[0]
    embedding[2, -1, 1, 2] = np.nan  # and the fourth is constant everywhere
    orders = [MaskOrder(0.1, True), MaskOrder(0.05), MaskOrder(0.1), MaskOrder(0.1)]
    with device.new_stream() as stream, device.upload(embedding, stream) as there:
        try:
            space = MaskSpace(device, launcher, stream, there, size)
        except DeviceError as error:
            pytest.skip(str(error))
        with space:
            for wanted in (orders, [None, MaskOrder()], orders[:1]):
                space.queue(wanted)
                found = space.collect()
                for order, channels, ours in zip(wanted, embedding, found, strict=False):
                    if order is None or not np.isfinite(channels).all():
                        assert ours is None
                        continue
                    masks = vit_masks(channels, size)
                    if order.distance_threshold is not None and len(masks):
                        how = "renormalised" if order.renormalised else "mean"
                        distances = cosine_distances(masks, size)
                        labels = cluster(distances, order.distance_threshold)
                        masks = merge_masks(masks, labels, size, how)
                    assert ours.shape == masks.shape
                    np.testing.assert_allclose(ours, masks, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [40, 770])
def test_more_masks_than_a_block_has_threads_are_clustered(device, launcher, count):
    points = np.random.default_rng(count).normal(size=(count, 3))
    distances = np.linalg.norm(points[:, None] - points, axis=2).astype(np.float32)
    with device.new_stream() as stream, contextlib.ExitStack() as owned:

        def there(array):
            return owned.enter_context(device.upload(array, stream))

        clusters = mask_kernels.Clusters(
            there(np.zeros((1, count), np.int32)),
            there(np.zeros((1, count + 1), np.int32)),
            there(np.zeros(1, np.int32)),
        )
        mask_kernels.complete_linkage(
            launcher,
            there(distances[None]),
            there(np.ones((1, count), np.int32)),
            there(np.array([0.8], np.float32)),
            there(np.zeros((1, 6, count), np.int32)),
            clusters,
            stream,
        )
        members, offsets, (found,) = (
            device.download(array, stream).reshape(-1)
            for array in (clusters.members, clusters.offsets, clusters.counts)
        )
    labels = np.empty(count, np.int64)
    labels[members] = np.repeat(np.arange(found), np.diff(offsets[: found + 1]))
    np.testing.assert_array_equal(labels, cluster(distances, np.float32(0.8)))


@pytest.mark.parametrize("correct", [True, False])
def test_maps(device, launcher, correct):
    generator = np.random.default_rng(1)
    size = (40, 37)
    masks = generator.random((20, 5, 4), dtype=np.float32)
    impacts = generator.normal(size=(5, 20)).astype(np.float32)
    expected = aggregate(masks, impacts, size, correct_coverage=correct)
    with device.new_stream() as stream, contextlib.ExitStack() as owned:

        def zeros(*shape):
            return owned.enter_context(device.zeros(shape, np.float32, stream))

        found = zeros(5, *size), zeros(*size)
        mask_kernels.aggregate(
            launcher,
            owned.enter_context(device.upload(masks, stream)),
            owned.enter_context(device.upload(impacts, stream)),
            zeros(6, 5, 4),
            *found,
            stream,
            correct_coverage=correct,
        )
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(device.download(ours, stream), theirs, rtol=0, atol=4e-5)


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
        embedding = np.random.default_rng(2).normal(size=(1, 8, 14, 14)).astype(np.float32)
        source = device.upload(embedding, stream)
        masks = device.upload(np.zeros_like(embedding), stream)
        kept = device.upload(np.zeros((1, 8), np.int32), stream)
        launcher.prepare("masks", "vitcx_normalise")  # compiled before recording
        with device.record_cuda_graph(
            stream, lambda s: mask_kernels.normalise(launcher, source, masks, kept, (224, 224), s)
        ) as graph:
            graph.launch(stream)
            result = device.download(masks, stream)
    np.testing.assert_allclose(result[0], vit_masks(embedding[0], (224, 224)), atol=2e-6)


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
