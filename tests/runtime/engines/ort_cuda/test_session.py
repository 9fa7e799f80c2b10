"""The CUDA session on ONNX Runtime's CPU provider and a GPU whose memory is the host's.

Binding, buffers, chunks, short batches, the thread and the errors are real; what cannot be seen
here is CUDA itself. `test_on_a_gpu` is for a machine with one.
"""

import logging
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest

from tests.kernels.conftest import shim  # noqa: F401
from tests.kernels.gpu import fake_cuda
from tests.tiny_bundle import CLASSES, SIZE, add_encoder, random_picture, write_tiny_bundle
from vitcx.kernels.errors import DeviceError
from vitcx.kernels.gpu import device as gpu
from vitcx.kernels.gpu import mask_space
from vitcx.kernels.gpu.launcher import KernelLauncher
from vitcx.kernels.host.blend import MASKED, NOISY, Perturbation
from vitcx.kernels.mask_order import MaskOrder
from vitcx.runtime.engines.cpu.onnxruntime_session import OnnxRuntimeSession
from vitcx.runtime.engines.ort_cuda import session as onnxruntime_cuda_session
from vitcx.runtime.engines.ort_cuda.bound_bundle import BoundBundle
from vitcx.runtime.engines.ort_cuda.bound_graph import BatchPasses
from vitcx.runtime.engines.ort_cuda.placement import check_placement, placed_nodes
from vitcx.runtime.engines.ort_cuda.session import OnnxRuntimeCudaSession
from vitcx.runtime.engines.ort_cuda.target import CUDA, Target
from vitcx.runtime.engines.registry import open_session
from vitcx.runtime.engines.session import PixelBatch
from vitcx.runtime.errors import BundleError, EngineError
from vitcx.runtime.explainer import Explainer

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

# The same provider on the same rows; the blend is the kernel's source built by g++, whose fused
# multiply-adds and sines differ from NumPy's in the last bits.
PARITY = 2e-5

# What a version older than 1.24 has not.
_TELL = "get_provider_graph_assignment_info"

HOST = Target("CPUExecutionProvider", "cpu", lambda gpu, stream, record: {})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def core(shim, monkeypatch):  # noqa: F811
    monkeypatch.setattr(ort, "__version__", "1.31.1")  # one that records
    return fake_cuda.install(monkeypatch, shim)


@pytest.fixture
def session(core, bundle):
    with OnnxRuntimeCudaSession(bundle, batch_size=6, target=HOST) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(bundle):
    with OnnxRuntimeSession(bundle, threads=1, batch_size=6) as opened:
        yield opened


def pictures(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def batch_of(rows, seed=0):
    generator = np.random.default_rng(seed)
    batch = PixelBatch(list(pictures(2, seed)), rows=rows)
    for row in range(0, rows, 2):
        batch.masks.append(generator.random((4, 4), dtype=np.float32))
        places = ((MASKED, row), (NOISY, row + 1))[: rows - row]
        batch.perturbations.append(Perturbation(row % 2, row // 2, row // 2, 7, 0.1, places))
    return batch


@pytest.mark.parametrize("count", [1, 5, 6, 7, 20])
def test_predicting_and_encoding_any_number_is_the_cpu_sessions(session, reference, count):
    images = pictures(count)
    ours, theirs = session.predict(images), reference.predict(images)
    assert (ours.dtype, ours.shape) == (np.float32, (count, CLASSES))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=PARITY)
    for ours, theirs in zip(session.encode(images), reference.encode(images), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=PARITY)


@pytest.mark.parametrize("rows", [6, 1, 5])
def test_a_batch_is_blended_into_the_bound_input_and_scored(session, reference, core, rows):
    batch = batch_of(rows, seed=rows)
    ours, theirs = session.score(batch), reference.score(batch)
    assert ours.probabilities.shape == (rows, CLASSES)
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=0, atol=PARITY)
    assert core.launches[-1][0] == "vitcx_blend"
    assert ours.forward_seconds > 0
    assert ours.blend_seconds >= 0


def test_whole_explanations_are_the_cpu_sessions(session, reference, bundle):
    explainers = [Explainer(bundle, engine) for engine in (session, reference)]
    picture = random_picture(3)
    ours, theirs = (explainer.explain(picture) for explainer in explainers)
    np.testing.assert_allclose(ours.saliency, theirs.saliency, rtol=0, atol=PARITY)
    assert ours.provenance["engine"] == "cuda"
    assert ours.provenance["device"] == "Fake GPU (sm_90)"
    others = [random_picture(seed) for seed in range(4)]
    for ours, theirs in zip(*(e.explain_many(others) for e in explainers), strict=True):
        np.testing.assert_allclose(ours.saliency, theirs.saliency, rtol=0, atol=PARITY)


@pytest.fixture
def with_cublas(core, monkeypatch):
    monkeypatch.setattr(mask_space, "Cublas", fake_cuda.Cublas)


def test_masks_are_made_where_the_embedding_lies(with_cublas, core, bundle, reference):
    others = [random_picture(seed) for seed in range(10)]  # more than are encoded at once
    with OnnxRuntimeCudaSession(bundle, batch_size=12, target=HOST) as session:
        assert session.makes_masks
        explainers = [Explainer(bundle, engine) for engine in (session, reference)]
        for settings in ({"distance_threshold": 0.3}, {"method": "score-cam"}, {"method": "rise"}):
            settings = {"mask_count": 9, **settings} if "rise" in settings.values() else settings
            found = (explainer.explain_many(others, **settings) for explainer in explainers)
            for ours, theirs in zip(*found, strict=True):
                for name in ("masks", "impacts", "saliency"):
                    np.testing.assert_allclose(
                        getattr(ours, name), getattr(theirs, name), rtol=0, atol=PARITY
                    )
        assert "vitcx_complete_linkage" in {name for name, *_ in core.launches}


def test_an_embedding_that_is_no_number_fails_alone(with_cublas, core, bundle):
    with OnnxRuntimeCudaSession(bundle, batch_size=6, target=HOST) as session:
        explainer = Explainer(bundle, session)
        bad = pictures(1)[0]
        bad[0, 0, 0] = np.nan
        given = np.stack([pictures(1)[0], bad])
        order = MaskOrder(0.1)
        good, refused = session.encode_masks(given, [order, order]).masks
        assert refused is None
        assert len(good) == len(explainer.explain(given[0]).masks)


def test_without_cublas_the_host_makes_the_masks(core, session, reference, bundle):
    assert not session.makes_masks
    with pytest.raises(EngineError, match="makes no masks"):
        session.encode_masks(pictures(1), [None])


def test_a_graph_for_the_encoder_is_taken_for_it_alone(core, bundle, tmp_path):
    mixed = add_encoder(bundle, write_tiny_bundle(tmp_path / "other", seed=1))
    images = pictures(7)
    with (
        OnnxRuntimeCudaSession(mixed, batch_size=6, target=HOST) as session,
        OnnxRuntimeSession(mixed, threads=1, batch_size=6) as reference,
    ):
        for _ in range(2):  # the two graphs share buffers: neither leaves anything behind
            for mine, theirs in zip(session.encode(images), reference.encode(images), strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=0, atol=PARITY)
            np.testing.assert_allclose(
                session.predict(images), reference.predict(images), rtol=0, atol=PARITY
            )


def test_threads_do_not_meet_on_the_device(session):
    inputs = [pictures(4, seed) for seed in range(6)]
    batches = [batch_of(6, seed) for seed in range(6)]
    predicted = [session.predict(images) for images in inputs]
    scored = [session.score(batch).probabilities for batch in batches]
    right = []

    def work(index):
        for _ in range(10):
            right.append(np.array_equal(session.predict(inputs[index]), predicted[index]))
            scores = session.score(batches[index])
            right.append(np.array_equal(scores.probabilities, scored[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(right) == 120
    assert all(right)


def test_while_one_session_records_no_other_touches_the_device(core, bundle, monkeypatch):
    at_work, most = [], []
    plain = BatchPasses.run

    def run(self, rows):
        at_work.append(rows)
        most.append(len(at_work))
        time.sleep(0.02)  # the others come meanwhile
        plain(self, rows)
        at_work.pop()

    monkeypatch.setattr(BatchPasses, "run", run)

    def work():
        with OnnxRuntimeCudaSession(bundle, batch_size=6, target=HOST) as session:
            session.predict(pictures(6))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 12


@pytest.fixture
def runs(monkeypatch):
    """(recording, binding, rows) of each pass, as ONNX Runtime is asked for it."""
    asked = []
    plain = ort.InferenceSession.run_with_iobinding

    def run(self, binding, options):
        plain(self, binding, options)
        rows = binding.get_outputs()[0].shape()[0]
        asked.append((options.get_run_config_entry("gpu_graph_id"), id(binding), rows))

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", run)
    return asked


def test_a_batch_goes_by_the_smallest_recorded_pass_from_one_binding_each(core, bundle, runs):
    with OnnxRuntimeCudaSession(bundle, batch_size=6, target=HOST) as session:
        assert [(graph, rows) for graph, _, rows in runs] == [
            ("3", 6),  # the largest shows whether the memory is enough
            ("2", 3),
            ("1", 2),
            ("-1", 6),  # the encoder's are not recorded
        ]
        for rows in (6, 5, 4, 3, 2, 1, 6):
            session.score(batch_of(rows))
        session.encode(pictures(6))
        assert [graph for graph, *_ in runs[4:]] == [*"3332113", "-1"]
    bindings = {(graph, binding) for graph, binding, _ in runs if graph != "-1"}
    assert len(bindings) == 3


def test_140_rows_cost_no_192(core, bundle, runs):
    with OnnxRuntimeCudaSession(bundle, batch_size=64, target=HOST) as session:
        opening = len(runs)
        for rows in (64, 64, 12):  # as they are packed
            session.score(batch_of(rows))
        assert sum(rows for *_, rows in runs[opening:]) == 64 + 64 + 16


def test_what_a_short_batch_does_not_fill_does_no_harm(core, bundle, reference):
    """The first batches after opening: nobody has filled the other rows yet."""
    for rows in (1, 5):
        with OnnxRuntimeCudaSession(bundle, batch_size=6, target=HOST) as session:
            batch = batch_of(rows)
            ours, theirs = session.score(batch), reference.score(batch)
            assert np.isfinite(ours.probabilities).all()
            np.testing.assert_allclose(
                ours.probabilities, theirs.probabilities, rtol=0, atol=PARITY
            )


def test_everything_on_the_device_is_given_back(core, bundle):
    session = OnnxRuntimeCudaSession(bundle, batch_size=6, target=HOST)
    session.score(batch_of(6))
    session.predict(pictures(9))
    assert fake_cuda.Buffer.live > 0
    session.close()
    session.close()
    assert fake_cuda.Buffer.live == 0
    assert not [t for t in threading.enumerate() if t.name.startswith("vitcx-cuda")]
    with pytest.raises(EngineError, match="closed"):
        session.predict(pictures(1))


def test_a_batch_that_does_not_fit_becomes_smaller_with_the_same_result(
    core, bundle, reference, monkeypatch, caplog
):
    plain = fake_cuda.Device.allocate
    row = 4 * 3 * SIZE * SIZE

    def allocate(self, size, *, stream):
        if size > 10 * row:
            raise fake_cuda.FakeDriverError("CUDA_ERROR_OUT_OF_MEMORY: The API call failed\nmore")
        return plain(self, size, stream=stream)

    monkeypatch.setattr(fake_cuda.Device, "allocate", allocate)
    with (
        caplog.at_level(logging.INFO, "vitcx"),
        OnnxRuntimeCudaSession(bundle, batch_size=30, target=HOST) as session,
    ):
        assert session.batch_size == 7
        images = pictures(20)
        np.testing.assert_allclose(
            session.predict(images), reference.predict(images), rtol=0, atol=PARITY
        )
    (record,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert "30" in record.message
    assert "7" in record.message
    assert fake_cuda.Buffer.live == 0


def test_memory_that_runs_short_in_onnxruntime_counts_too(core, bundle, monkeypatch):
    plain = BatchPasses.run

    def run(self, rows):
        if rows > 8:
            raise RuntimeError(
                "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : BFCArena::AllocateRawInternal "
                "Failed to allocate memory for requested buffer of size 1024"
            )
        return plain(self, rows)

    monkeypatch.setattr(BatchPasses, "run", run)
    with OnnxRuntimeCudaSession(bundle, batch_size=16, target=HOST) as session:
        assert session.batch_size == 8


def test_a_graph_that_cannot_be_recorded_runs_node_by_node_and_that_is_logged(
    core, bundle, reference, caplog
):
    asked = []

    def options(gpu, stream, record):
        asked.append(record)
        if record:
            raise RuntimeError("This session cannot use the graph capture feature\nas requested")
        return {}

    target = replace(HOST, options=options)
    with (
        caplog.at_level(logging.INFO, "vitcx"),
        OnnxRuntimeCudaSession(bundle, batch_size=6, target=target) as session,
    ):
        images = pictures(3)
        np.testing.assert_allclose(
            session.predict(images), reference.predict(images), rtol=0, atol=PARITY
        )
    assert asked == [True, False]
    assert "cannot use the graph capture feature" in caplog.text
    assert fake_cuda.Buffer.live == 0


@pytest.mark.parametrize(
    ("version", "recorded"), [("1.29.0", False), ("1.30.0", True), ("1.32.0.dev20261101", True)]
)
def test_a_version_whose_recordings_other_passes_spoil_records_none(
    core, bundle, monkeypatch, version, recorded
):
    asked = []

    def options(gpu, stream, record):
        asked.append(record)
        return {}

    monkeypatch.setattr(ort, "__version__", version)
    with OnnxRuntimeCudaSession(bundle, batch_size=6, target=replace(HOST, options=options)):
        assert asked == [recorded]


def test_a_version_that_does_not_tell_where_nodes_run_is_to_check_that_itself(
    core, bundle, tmp_path, monkeypatch
):
    asked, runs = [], []
    plain = ort.InferenceSession.run_with_iobinding

    def options(gpu, stream, record):
        asked.append(record)
        return {}

    def run(self, binding, options):
        runs.append(options.get_run_config_entry("gpu_graph_id"))
        return plain(self, binding, options)

    monkeypatch.setattr(ort, "__version__", "1.23.2")
    for kind in ort.InferenceSession.__mro__:
        if _TELL in vars(kind):
            monkeypatch.delattr(kind, _TELL)
    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", run)
    mixed = add_encoder(bundle, write_tiny_bundle(tmp_path / "other", seed=1))
    with OnnxRuntimeCudaSession(mixed, batch_size=6, target=replace(HOST, options=options)) as one:
        one.predict(pictures(6))
    assert asked == [True, True]
    assert set(runs) == {"-1"}  # allowed, and not done


def test_what_recording_took_is_given_back_before_the_graph_is_opened_without(
    core, bundle, monkeypatch
):
    tried, alive = [], []
    plain = ort.InferenceSession.run_with_iobinding

    def run(self, binding, options):
        if not tried:
            tried.append(weakref.ref(self))
            raise RuntimeError("operation not permitted when stream is capturing")
        return plain(self, binding, options)

    def options(gpu, stream, record):
        if not record:
            alive.extend(session() for session in tried)
        return {}

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", run)
    with OnnxRuntimeCudaSession(bundle, batch_size=6, target=replace(HOST, options=options)):
        assert alive == [None]


def test_onnxruntime_plans_no_memory_beside_what_the_first_pass_took(core, bundle, monkeypatch):
    patterns = []
    plain = ort.InferenceSession

    def open(path, options, **others):
        patterns.append(options.enable_mem_pattern)
        return plain(path, options, **others)

    monkeypatch.setattr(ort, "InferenceSession", open)
    with OnnxRuntimeCudaSession(bundle, batch_size=6, target=HOST):
        assert patterns == [False]


def test_what_fails_both_ways_is_an_error_and_leaves_nothing(core, bundle):
    def options(gpu, stream, record):
        raise RuntimeError("cuDNN is on strike")

    with pytest.raises(EngineError, match=r"cuda on .*opening .* failed: cuDNN is on strike"):
        OnnxRuntimeCudaSession(bundle, target=replace(HOST, options=options))
    assert fake_cuda.Buffer.live == 0
    assert not [t for t in threading.enumerate() if t.name.startswith("vitcx-cuda")]


def test_a_provider_that_was_not_taken_is_an_error(core, bundle, monkeypatch):
    monkeypatch.setattr(
        ort.InferenceSession, "get_providers", lambda self: ["CPUExecutionProvider"]
    )
    target = replace(HOST, provider="CUDAExecutionProvider")
    device = gpu.Gpu()
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(EngineError, match="doctor"),
    ):
        BoundBundle(ort, bundle, target, device, KernelLauncher(device), 6, record=False)
    assert fake_cuda.Buffer.live == 0


@pytest.mark.skipif(not hasattr(ort.InferenceSession, _TELL), reason="this version does not tell")
def test_nodes_left_to_the_cpu_are_counted_unless_they_compute_shapes(bundle):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    opened = ort.InferenceSession(
        str(bundle.model_path), options, providers=["CPUExecutionProvider"]
    )
    nodes = placed_nodes(opened)
    assert ("CPUExecutionProvider", "Conv") in nodes
    check_placement(nodes, "CPUExecutionProvider")
    with pytest.raises(EngineError, match=r"1 Conv.*to the CPU"):
        check_placement(nodes, "CUDAExecutionProvider")
    check_placement([("CPUExecutionProvider", "Shape"), ("X", "MatMul")], "X")


def test_a_manifest_that_disagrees_with_the_graph_is_refused_before_anything_runs(core, bundle):
    wrong = replace(bundle, manifest=replace(bundle.manifest, class_names=("a", "b")))
    with pytest.raises(BundleError, match=r"'probabilities' float32 \(any, 5\).*any, 2\)"):
        OnnxRuntimeCudaSession(wrong, target=HOST)
    assert fake_cuda.Buffer.live == 0


def test_the_providers_options_name_our_stream_and_forbid_tf32(core):
    device = gpu.Gpu()
    with device.new_stream() as stream:
        options = CUDA.options(device, stream, True)
        assert options["user_compute_stream"] == str(stream.handle)
    assert options["use_tf32"] == "0"
    assert options["enable_cuda_graph"] == "1"
    assert all(isinstance(value, str) for value in options.values())


def test_without_a_gpu_it_says_so(bundle, monkeypatch):
    def none(index=0):
        raise DeviceError("No CUDA driver on this machine")

    monkeypatch.setattr(onnxruntime_cuda_session, "Gpu", none)
    with pytest.raises(EngineError, match="'cuda' cannot run here: No CUDA driver"):
        OnnxRuntimeCudaSession(bundle, target=HOST)


def test_an_onnxruntime_without_cuda_says_what_to_install(bundle):
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime is built for CUDA")
    with pytest.raises(EngineError, match=r"not built for CUDA.*vitcx\[gpu\]"):
        open_session(bundle, "cuda")


@pytest.mark.gpu
def test_on_a_gpu(bundle, reference):
    """Parity, recording and short batches, with the CUDA provider itself."""
    try:
        session = open_session(bundle, "cuda", batch_size=6)
    except EngineError as error:
        pytest.skip(str(error))
    with session:
        for rows in (6, 6, 6, 3, 6):
            batch = batch_of(rows, seed=rows)
            ours, theirs = session.score(batch), reference.score(batch)
            np.testing.assert_allclose(
                ours.probabilities, theirs.probabilities, rtol=0, atol=PARITY
            )
        for ours, theirs in zip(
            session.encode(pictures(9)), reference.encode(pictures(9)), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
