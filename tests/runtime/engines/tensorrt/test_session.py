"""The TensorRT session with no GPU: on `fake_cuda`, and a stand-in for TensorRT that computes.

The blend kernel's own code runs (compiled by g++), and the forward passes are ONNX Runtime's, so a
whole explanation must be that of the CPU engine, to rounding.
"""

from __future__ import annotations

import ast
import enum
import gc
import inspect
import logging
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import numpy as np
import pytest

from tests.kernels.conftest import shim  # noqa: F401
from tests.kernels.gpu import fake_cuda
from tests.runtime.engines.tensorrt import recording_tensorrt
from tests.tiny_bundle import (
    CHANNELS,
    CLASSES,
    SIZE,
    add_encoder,
    random_picture,
    write_tiny_bundle,
)
from vitcx.kernels.errors import DeviceError
from vitcx.kernels.gpu.arrays import DevicePointer
from vitcx.kernels.gpu.blending import PERTURBATION_DTYPE
from vitcx.kernels.gpu.driver import find_driver
from vitcx.kernels.host.blend import MASKED, NOISY, Perturbation
from vitcx.runtime.engines.cpu.onnxruntime_session import OnnxRuntimeSession
from vitcx.runtime.engines.session import PixelBatch
from vitcx.runtime.engines.tensorrt import library as tensorrt_library
from vitcx.runtime.engines.tensorrt import session as tensorrt_session
from vitcx.runtime.engines.tensorrt.build_options import BuildOptions
from vitcx.runtime.engines.tensorrt.builder import build_plan
from vitcx.runtime.engines.tensorrt.context import PlanRefused, open_plan
from vitcx.runtime.engines.tensorrt.profiles import Shapes
from vitcx.runtime.engines.tensorrt.session import TensorRTSession
from vitcx.runtime.errors import BundleError, EngineError
from vitcx.runtime.explainer import Explainer

# The kernel's rows differ by 2e-6 from the NumPy twin's (tests/kernels/host/test_blend.py); the
# tiny model's slopes are of the order of 1.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    pytest.importorskip("onnx")
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture
def core(monkeypatch, shim):  # noqa: F811
    yield fake_cuda.install(monkeypatch, shim)
    tensorrt_library.find_library.cache_clear()


@pytest.fixture
def record(core, monkeypatch, tmp_path):
    return recording_tensorrt.install(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def reference(bundle):
    with OnnxRuntimeSession(bundle) as session:
        yield session


def images(count, seed=0):
    """(count,3,H,W) float32."""
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def batch(rows, seed=0):
    """A batch of masked and noised rows, two for each mask but the last of an odd number."""
    masks = np.random.default_rng(seed).random((-(-rows // 2), 4, 4), dtype=np.float32)
    perturbations = [
        Perturbation(0, k, k, 7, 0.1, ((MASKED, 2 * k), (NOISY, 2 * k + 1))[: rows - 2 * k])
        for k in range(len(masks))
    ]
    return PixelBatch([images(1, seed)[0]], list(masks), perturbations, rows)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# --- the same explanations ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flavour", "old"), [("tensorrt", False), ("tensorrt", True), ("tensorrt-rtx", False)]
)
def test_explanations_are_those_of_the_cpu_engine(
    flavour, old, bundle, core, monkeypatch, tmp_path
):
    recording_tensorrt.install(monkeypatch, tmp_path, flavour, old)
    pictures = [random_picture(seed) for seed in range(3)]
    with Explainer(bundle, OnnxRuntimeSession(bundle)) as explainer:
        expected = list(explainer.explain_many(pictures, targets="top2"))
    with Explainer(bundle, TensorRTSession(bundle, flavour, batch_size=8)) as explainer:
        found = list(explainer.explain_many(pictures, targets="top2"))
        one = explainer.explain(pictures[0], targets="top2")
    assert one.provenance["engine"] == flavour
    assert one.provenance["device"] == "Fake GPU"
    for ours, theirs in zip([*found, one], [*expected, expected[0]], strict=True):
        assert ours.targets == theirs.targets
        for name in ("probabilities", "masks", "impacts", "saliency", "coverage"):
            np.testing.assert_allclose(
                getattr(ours, name), getattr(theirs, name), rtol=0, atol=TOLERANCE, err_msg=name
            )
    assert fake_cuda.Buffer.live == 0


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_an_encoder_of_its_own_has_a_plan_of_its_own(
    flavour, bundle, core, reference, monkeypatch, tmp_path
):
    record = recording_tensorrt.install(monkeypatch, tmp_path, flavour)
    mixed = add_encoder(bundle, write_tiny_bundle(tmp_path / "other", seed=1))
    given = images(5)
    with (
        OnnxRuntimeSession(mixed) as cpu,
        TensorRTSession(mixed, flavour, batch_size=4, encode_images=3) as session,
    ):
        expected = cpu.encode(given)
        for mine, theirs in zip(session.encode(given), expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=TOLERANCE)
        predicted = session.predict(given)
        np.testing.assert_allclose(predicted, reference.predict(given), rtol=0, atol=TOLERANCE)
        assert np.abs(predicted - expected[0]).max() > 100 * TOLERANCE
    assert [(s.profiles, s.images(s.profiles[0])) for s in record.built] == [
        (("score", "short"), (4, 4)),
        (("encode",), (1, 3)),
    ]
    assert [context.profile for context in record.contexts] == [0, 1, 1, 0]
    if flavour == "tensorrt-rtx":  # the scoring passes alone are compiled for their one shape
        kinds = [c.config.cuda_graph_strategy.name for c in record.contexts]
        assert kinds == ["WHOLE_GRAPH_CAPTURE"] * 3 + ["DISABLED"]
    with TensorRTSession(mixed, flavour, batch_size=3, encode_images=3):
        pass
    # The other is in the cache.
    assert [s.profiles for s in record.built[2:]] == [("score", "short")]
    assert fake_cuda.Buffer.live == 0


@pytest.mark.parametrize("count", [1, 3, 4, 11])
def test_any_number_of_images_is_encoded_and_predicted(count, bundle, record, reference):
    given = images(count)
    with TensorRTSession(bundle, batch_size=5, encode_images=3) as session:
        before = len(record.passes)
        probabilities, embedding = session.encode(given)
        encoded = len(record.passes)
        predicted = session.predict(given)
    expected = reference.encode(given)
    assert probabilities.shape == (count, CLASSES)
    assert embedding.shape == (count, CHANNELS, 4, 4)
    np.testing.assert_allclose(probabilities, expected[0], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(embedding, expected[1], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(predicted, expected[0], rtol=0, atol=TOLERANCE)
    rows = [(context.profile, rows) for context, rows, *_ in record.passes]
    assert rows[before:encoded] == [(0, min(3, count - start)) for start in range(0, count, 3)]
    # Full batches, and the smallest of 5, 3 and 2 rows that holds the rest.
    sizes = {0: [], 1: [(2, 2)], 3: [(2, 3)], 4: [(1, 5)]}
    assert rows[encoded:] == [(1, 5)] * (count // 5) + sizes[count % 5]


@pytest.mark.parametrize(("rows", "size"), [(1, 2), (2, 2), (3, 4), (5, 8), (8, 8)])
def test_a_short_batch_runs_the_smallest_pass_that_holds_it(rows, size, bundle, record, reference):
    with TensorRTSession(bundle, batch_size=8) as session:
        before = len(record.passes)
        scores = session.score(batch(rows))
        ((context, ran, *_),) = record.passes[before:]
        stale = recording_tensorrt._at(context.addresses["images"], (8, 3, SIZE, SIZE))
        assert np.isfinite(stale).all()
        assert not stale[rows:].any()
    assert (context.profile, ran) == (1 if size == 8 else 2, size)
    assert scores.probabilities.shape == (rows, CLASSES)
    expected = reference.score(batch(rows)).probabilities
    np.testing.assert_allclose(scores.probabilities, expected, rtol=0, atol=TOLERANCE)
    # By events around the two parts: the stand-in's are the host's clock.
    assert scores.blend_seconds > 0
    assert scores.forward_seconds > 0


def test_answers_are_copies(bundle, record):
    with TensorRTSession(bundle, batch_size=4) as session:
        first = session.score(batch(4)).probabilities
        encoded = session.encode(images(2))[1]
        kept = first.copy(), encoded.copy()
        session.score(batch(4, seed=1))
        session.encode(images(2, seed=1))
    np.testing.assert_array_equal(first, kept[0])
    np.testing.assert_array_equal(encoded, kept[1])


def test_a_picture_on_the_device_is_explained_like_one_on_the_host(bundle, record):
    picture = images(1)[0]
    there = DevicePointer(picture.ctypes.data, picture.shape, owner=picture)
    with Explainer(bundle, TensorRTSession(bundle, batch_size=8)) as explainer:
        found = explainer.explain(there)
        expected = explainer.explain(picture)
    np.testing.assert_array_equal(found.saliency, expected.saliency)


# --- contexts, streams, graphs --------------------------------------------------------------------


def test_a_thread_at_work_has_a_context_and_a_stream_to_itself(bundle, record):
    inside = threading.Barrier(2, timeout=20)
    with TensorRTSession(bundle, batch_size=4) as session:
        with session._opened.scorers.take(), session._opened.scorers.take():
            pass  # a second one is made when the first is taken
        before = len(record.passes)
        record.before_pass = inside.wait  # two passes are under way at once, or this fails
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(session.score, [batch(4, 0), batch(4, 1)]))
        record.before_pass = lambda: None
        both = record.passes[before:]
        assert len({id(context) for context, *_ in both}) == 2
        assert len({stream for _, _, stream, _ in both}) == 2
        inputs = [context.addresses["images"] for context, *_ in both]
        assert len(set(inputs)) == 2
        for seed, answer in enumerate(answers):
            again = session.score(batch(4, seed)).probabilities
            np.testing.assert_array_equal(answer.probabilities, again)
        # However many threads come by, at once or one after the other: no more contexts.
        made = len(record.contexts)
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(session.score, [batch(4)] * 36))
            list(pool.map(session.encode, [images(1)] * 36))
        assert len(record.contexts) <= made + 1  # the second that encodes
        assert made == 2 * 3 + 1  # for 4, 2 and 1 rows
    assert fake_cuda.Buffer.live == 0


def test_encoding_and_scoring_do_not_wait_for_each_other(bundle, record):
    inside = threading.Barrier(2, timeout=20)
    with TensorRTSession(bundle, batch_size=4) as session:
        before = len(record.passes)
        record.before_pass = inside.wait
        with ThreadPoolExecutor(2) as pool:
            scored, encoded = (
                pool.submit(session.score, batch(4)),
                pool.submit(session.encode, images(2)),
            )
            scored.result()
            encoded.result()
        profiles = {context.profile for context, *_ in record.passes[before:]}
    assert profiles == {0, 1}
    assert len(record.contexts) == 4


def test_each_size_is_recorded_once_and_replayed(bundle, record, core):
    with TensorRTSession(bundle, batch_size=4) as session:
        graphs = list(fake_cuda.Graph.made)
        assert [len(graph.work) for graph in graphs] == [1, 1, 1]
        launched = [graph.launches for graph in graphs]
        for seed in range(3):
            session.score(batch(4, seed))
        session.score(batch(3))
        session.score(batch(2))
        session.predict(images(9))  # 4, 4 and 1
        assert [graph.launches for graph in graphs] == [
            before + more for before, more in zip(launched, (6, 1, 1), strict=True)
        ]
        assert fake_cuda.Graph.made == graphs
    assert all(graph.is_closed for graph in graphs)


def test_the_sizes_share_their_scratch_memory(bundle, record):
    with TensorRTSession(bundle, batch_size=8):
        scoring = [context for context in record.contexts if context.profile]
        assert len(scoring) == 3
        assert len({context._memory for context in scoring}) == 1


def test_rtx_records_its_own_graph(bundle, core, monkeypatch, tmp_path):
    record = recording_tensorrt.install(monkeypatch, tmp_path, "tensorrt-rtx")
    monkeypatch.setattr(fake_cuda.Stream, "create_graph_builder", None)  # nobody asks for one
    with TensorRTSession(bundle, "tensorrt-rtx", batch_size=4) as session:
        session.score(batch(4))
    by_profile = {context.profile: context.config for context in record.contexts}
    encode, score, short = (by_profile[profile] for profile in range(3))
    for config in (score, short):
        assert config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
        assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    # Every number of images would be compiled apart, in front of whoever asks for it first.
    assert encode.cuda_graph_strategy.name == "DISABLED"
    assert encode.dynamic_shapes_kernel_specialization_strategy.name == "LAZY"


def test_rtx_compiles_each_profile_once_and_not_again_at_the_next_start(
    bundle, core, monkeypatch, tmp_path, caplog
):
    record = recording_tensorrt.install(monkeypatch, tmp_path, "tensorrt-rtx")
    with TensorRTSession(bundle, "tensorrt-rtx", batch_size=4) as session:
        with session._opened.scorers.take(), session._opened.scorers.take():
            pass  # another thread's context is ready at once
        assert record.compiled == [1, 2, 2, 0]
    assert len(record.contexts) == 7
    kept = sorted(file.name.split(".")[1] for file in tmp_path.rglob("*.runtime-cache"))
    assert kept == ["encode", "score-4", "short-1", "short-2"]
    with TensorRTSession(bundle, "tensorrt-rtx", batch_size=4):
        assert record.compiled == [1, 2, 2, 0]
    # Of another driver: compiled again, and kept.
    record.refuse_caches = True
    with TensorRTSession(bundle, "tensorrt-rtx", batch_size=4):
        assert record.compiled == [1, 2, 2, 0] * 2
    record.refuse_caches = False
    for file in tmp_path.rglob("*.runtime-cache"):
        file.write_bytes(b"damaged")
    with TensorRTSession(bundle, "tensorrt-rtx", batch_size=4) as session:
        assert record.compiled == [1, 2, 2, 0] * 3
        session.score(batch(4))
    assert len([line for line in warnings_of(caplog) if "runtime cache" in line]) == 4
    # They go with the plan.
    record.refuse_plans = 1
    with TensorRTSession(bundle, "tensorrt-rtx", batch_size=4):
        assert record.compiled == [1, 2, 2, 0] * 4


def test_rtxs_graph_is_made_when_the_session_opens(bundle, core, monkeypatch, tmp_path):
    """It captures a context's second pass: the first alone would not take all memory."""
    record = recording_tensorrt.install(monkeypatch, tmp_path, "tensorrt-rtx")
    with TensorRTSession(bundle, "tensorrt-rtx", batch_size=4):
        pass
    assert [context.profile for context, *_ in record.passes] == [1, 1, 2, 2, 2, 2, 0]


@pytest.mark.parametrize("capturable", [True, False])
def test_where_rtx_cannot_capture_the_log_says_so(
    capturable, bundle, core, monkeypatch, tmp_path, caplog
):
    record = recording_tensorrt.install(monkeypatch, tmp_path, "tensorrt-rtx")
    record.capturable = capturable
    with TensorRTSession(bundle, "tensorrt-rtx", batch_size=4) as session:
        assert np.isfinite(session.score(batch(4)).probabilities).all()
    told = [line for line in warnings_of(caplog) if "no CUDA graph" in line]
    assert len(told) == (not capturable)  # asked once, and of the scoring pass alone


def test_without_a_graph_the_log_says_so_and_the_scores_are_the_same(
    bundle, record, reference, caplog
):
    record.refuse_capture = "operation not permitted when stream is capturing"
    with TensorRTSession(bundle, batch_size=4) as session:
        found = session.score(batch(4)).probabilities
    np.testing.assert_allclose(
        found, reference.score(batch(4)).probabilities, rtol=0, atol=TOLERANCE
    )
    told = [line for line in warnings_of(caplog) if "no CUDA graph" in line]
    assert len(told) == 1
    assert "not permitted when stream is capturing" in told[0]


# --- faults ---------------------------------------------------------------------------------------


def test_a_refused_pass_is_an_error_with_the_librarys_words(bundle, record):
    with TensorRTSession(bundle, batch_size=4) as session:
        record.refuse_passes = "Error Code 1: Cask (Cask convolution execution)"
        with pytest.raises(EngineError, match=r"tensorrt 10\.13.* cannot run: .*Cask") as caught:
            session.encode(images(1))
        assert "\n" not in str(caught.value)
        # That context is not used again; a new one is, once the fault is gone.
        record.refuse_passes = None
        probabilities, _ = session.encode(images(1))
        assert np.isfinite(probabilities).all()
    assert fake_cuda.Buffer.live == 0


def test_a_graph_that_does_not_launch_is_an_error(bundle, record, monkeypatch):
    with TensorRTSession(bundle, batch_size=4) as session:
        monkeypatch.setattr(fake_cuda.Graph, "refusal", "CUDA_ERROR_ILLEGAL_ADDRESS: bad\nmore")
        with pytest.raises(EngineError, match="scoring failed: CUDA_ERROR_ILLEGAL") as caught:
            session.score(batch(4))
        assert "\n" not in str(caught.value)
        monkeypatch.setattr(fake_cuda.Graph, "refusal", None)
        session.score(batch(4))
    assert fake_cuda.Buffer.live == 0


def test_out_of_memory_halves_the_batch_and_says_so_once(
    bundle, record, reference, monkeypatch, caplog
):
    """Room for 8 rows, not for 16, with an image and a mask for each; scratch takes 12 KB."""
    row = 4 * (3 * SIZE * SIZE + CLASSES + CHANNELS * 16)
    source = 4 * (3 * SIZE * SIZE + SIZE * SIZE) + PERTURBATION_DTYPE.itemsize
    monkeypatch.setattr(fake_cuda.Device, "memory_bytes", 8 * (row + source) + 4 * row + 20_000)
    with TensorRTSession(bundle, batch_size=64, encode_images=4) as session:
        assert session.batch_size == 8
        assert [shapes.batch_size for shapes in record.built] == [64, 32, 16, 8]
        # The batch that needs the most: its perturbations name another image each.
        most = batch(8)
        most.images = list(images(8))
        most.masks = list(np.random.default_rng(0).random((8, 4, 4), dtype=np.float32))
        most.perturbations = [Perturbation(i, i, i, 7, 0.1, ((MASKED, i),)) for i in range(8)]
        np.testing.assert_allclose(
            session.score(most).probabilities,
            reference.score(most).probabilities,
            rtol=0,
            atol=TOLERANCE,
        )
    (line,) = warnings_of(caplog)
    assert "a mask batch of 64 rows: going on with 8" in line
    assert fake_cuda.Buffer.live == 0


@pytest.mark.parametrize(
    "words",
    [
        "Error Code 2: OutOfMemory (Requested size was 17)",
        "Cuda Runtime (out of memory)",
        # TensorRT-RTX 1.7.1, of the constants of a kernel.
        "Error Code 1: Myelin (default_alloc] CUDA error 2 for 132-byte allocation.)",
    ],
)
def test_no_room_at_all_is_an_error(words, bundle, record, caplog):
    record.refuse_contexts = words
    with pytest.raises(EngineError, match="one row of a mask batch") as caught:
        TensorRTSession(bundle, batch_size=4)
    assert words in str(caught.value)
    assert warnings_of(caplog) == []
    assert [(s.encode_images, s.batch_size) for s in record.built] == [(4, 4), (2, 2), (1, 1)]
    assert fake_cuda.Buffer.live == 0


def test_a_context_that_is_refused_for_another_reason_is_not_tried_smaller(bundle, record):
    record.refuse_contexts = "unsupported SM"
    with pytest.raises(EngineError, match="cannot open profile 1: unsupported SM"):
        TensorRTSession(bundle, batch_size=4)
    assert len(record.built) == 1


def test_where_there_is_no_room_for_another_context_threads_wait(bundle, record, caplog):
    with TensorRTSession(bundle, batch_size=4) as session:
        record.refuse_contexts = "Error Code 2: OutOfMemory"
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(session.score, [batch(4)] * 12))
    for answer in answers:
        np.testing.assert_array_equal(answer.probabilities, answers[0].probabilities)
    assert len(record.contexts) == 4
    told = [line for line in warnings_of(caplog) if "threads share" in line]
    assert len(told) <= 1  # none, where no two threads came at once


def test_a_closed_session_has_freed_everything(bundle, record):
    session = TensorRTSession(bundle, batch_size=4)
    session.score(batch(2))
    session.predict(images(1))
    assert fake_cuda.Buffer.live > 0
    engine = weakref.ref(record.contexts[0]._engine)
    record.contexts.clear()
    record.passes.clear()
    session.close()
    session.close()
    assert fake_cuda.Buffer.live == 0
    gc.collect()
    assert engine() is None  # it has the weights, in memory of the library's
    for use in (
        lambda: session.encode(images(1)),
        lambda: session.predict(images(1)),
        lambda: session.score(batch(1)),
    ):
        with pytest.raises(EngineError, match="closed: load the bundle again"):
            use()


def test_what_is_in_use_when_the_session_closes_is_freed_after(bundle, record):
    session = TensorRTSession(bundle, batch_size=4)
    closing = threading.Thread(target=session.close)
    record.before_pass = closing.start
    assert len(session.encode(images(1))[0]) == 1
    closing.join(20)
    assert fake_cuda.Buffer.live == 0


# --- plans ----------------------------------------------------------------------------------------


def test_a_plan_is_built_once(bundle, record):
    for _ in range(2):
        with TensorRTSession(bundle, batch_size=4):
            pass
    assert len(record.built) == 1


def test_a_plan_that_cannot_be_read_is_built_again_once(bundle, record, caplog):
    with TensorRTSession(bundle, batch_size=4):
        pass
    record.refuse_plans = 1
    with TensorRTSession(bundle, batch_size=4) as session:
        session.score(batch(4))
    assert len(record.built) == 2
    assert any("Serialization assertion failed" in line for line in warnings_of(caplog))
    record.refuse_plans = 2
    with pytest.raises(EngineError, match=r"just built .* refused: .* cannot read the plan"):
        TensorRTSession(bundle, batch_size=4)


def test_a_plan_with_other_profiles_is_built_again(bundle, record, caplog):
    size = [3, SIZE, SIZE]
    ranges = [{"images": [[rows, *size]] * 3} for rows in (1, 4, 4)]
    record.changes = {"profiles": ranges}
    with pytest.raises(EngineError, match=r"profile 0 .*'images' .* \(1, 3, 32, 32\), expected"):
        TensorRTSession(bundle, batch_size=4)
    record.changes = {"profiles": [{"images": [[4, *size]] * 3}]}
    with pytest.raises(EngineError, match="has 1 profiles, expected 3"):
        TensorRTSession(bundle, batch_size=2)
    record.changes = {}
    with TensorRTSession(bundle, batch_size=4):  # the bad plan in the cache is replaced
        pass
    assert len([line for line in warnings_of(caplog) if "built again" in line]) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": ["INPUT", "FLOAT", [-1, 3, SIZE, SIZE]]}, "'pixels'"),
        ({"embedding": ["OUTPUT", "FLOAT", [-1, CHANNELS, 5, 5]]}, "manifest says"),
        ({"embedding": ["INPUT", "FLOAT", [-1, CHANNELS, 4, 4]]}, "manifest says"),
        ({"probabilities": ["OUTPUT", "HALF", [-1, CLASSES]]}, "float16 .*says .* float32"),
    ],
)
def test_a_graph_that_is_not_the_manifests_is_refused(change, message, bundle, record):
    tensors = {
        "images": ["INPUT", "FLOAT", [-1, 3, SIZE, SIZE]],
        "probabilities": ["OUTPUT", "FLOAT", [-1, CLASSES]],
        "embedding": ["OUTPUT", "FLOAT", [-1, CHANNELS, 4, 4]],
    }
    if "pixels" in change:
        del tensors["images"]
    record.changes = {"tensors": {**tensors, **change}}
    with pytest.raises(BundleError, match=message):
        TensorRTSession(bundle, batch_size=4)
    assert fake_cuda.Buffer.live == 0


def test_without_a_gpu_the_error_says_so(bundle, monkeypatch, tmp_path):
    recording_tensorrt.install(monkeypatch, tmp_path)

    def no_gpu(index):
        raise DeviceError("No CUDA driver here\nmore")

    monkeypatch.setattr(tensorrt_session, "Gpu", no_gpu)
    with pytest.raises(EngineError, match=r"opening GPU 0 failed: No CUDA driver here$"):
        TensorRTSession(bundle)
    tensorrt_library.find_library.cache_clear()


def test_without_the_kernels_compiler_no_session_opens(bundle, record, monkeypatch):
    def no_compiler(*_):
        raise DeviceError("The GPU path needs NVRTC\nmore")

    monkeypatch.setattr("vitcx.kernels.gpu.launcher.cubin", no_compiler)
    with pytest.raises(
        EngineError, match=r"opening a context .* failed: The GPU path needs NVRTC$"
    ):
        TensorRTSession(bundle, batch_size=4)
    assert fake_cuda.Buffer.live == 0


def test_the_real_library_says_why_it_cannot_read_a_plan(bundle):
    """TensorRT-RTX builds on a machine without a driver, and reads nothing there."""
    pytest.importorskip("tensorrt_rtx")
    try:
        find_driver()
    except DeviceError:
        pass
    else:
        pytest.skip("this machine has a driver")
    tensorrt_library.find_library.cache_clear()
    library = tensorrt_library.find_library("tensorrt-rtx")
    shapes = Shapes(2, 4)
    built = build_plan(library, bundle, shapes, BuildOptions(compute_capabilities=("8.9",)))
    with pytest.raises(PlanRefused, match=r"cannot read the plan: .*driver") as caught:
        open_plan(library, built.plan, bundle, shapes)
    assert "\n" not in str(caught.value)


# --- the stand-in against the real packages -------------------------------------------------------

STANDINS = (
    recording_tensorrt.ILogger,
    recording_tensorrt.ICudaEngine,
    recording_tensorrt.IExecutionContext,
    recording_tensorrt.IRuntimeConfig,
    recording_tensorrt.IRuntimeCache,
)
ENUMERATIONS = (
    recording_tensorrt.ILogger.Severity,
    recording_tensorrt.DataType,
    recording_tensorrt.TensorIOMode,
    recording_tensorrt.ExecutionContextAllocationStrategy,
    recording_tensorrt.CudaGraphStrategy,
    recording_tensorrt.DynamicShapesKernelSpecializationStrategy,
)
RTX_ALONE = (
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
    "is_stream_capturable",
    "create_runtime_cache",
    "set_runtime_cache",
    "IRuntimeCache",
)


def calls_of(kind):
    """{method: its parameters} of a stand-in."""
    return {
        name: [p for p in inspect.signature(method).parameters if p != "self"]
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def stub_class(name):
    """The definition of a class in TensorRT's type stubs."""
    try:
        files = metadata.files("tensorrt-stubs")
    except metadata.PackageNotFoundError:
        pytest.skip("the package tensorrt-stubs is not installed")
    (path,) = (f.locate() for f in files if f.name == "tensorrt.pyi")
    # The class alone: others have lines that are no Python ("in" as a parameter's name).
    text = path.read_text(encoding="utf-8")
    (source,) = re.findall(rf"^class {name}\b.*?(?=^\S)", text, flags=re.DOTALL | re.MULTILINE)
    return ast.parse(source).body[0].body


def test_the_stand_in_has_the_stubs_names_and_parameters():
    for kind in STANDINS:
        if kind.__name__ in RTX_ALONE:
            continue
        real: dict[str, list[list[str]]] = {}
        for node in stub_class(kind.__name__):
            if isinstance(node, ast.FunctionDef):
                names = [a.arg for a in node.args.args if a.arg != "self"]
                real.setdefault(node.name, []).append(names)
        for name, parameters in calls_of(kind).items():
            if name in RTX_ALONE:
                continue
            assert parameters in real[name], (kind.__name__, name, parameters, real[name])
        if kind is recording_tensorrt.ICudaEngine:
            assert {"num_io_tensors", "num_optimization_profiles"} <= set(real)
    runtime = {n.name for n in stub_class("Runtime") if isinstance(n, ast.FunctionDef)}
    assert {"__init__", "deserialize_cuda_engine"} <= runtime
    for kind in ENUMERATIONS:
        if kind.__name__ in RTX_ALONE:
            continue
        body = stub_class("ILogger" if kind.__name__ == "Severity" else kind.__name__)
        nested = [n.body for n in body if isinstance(n, ast.ClassDef) and n.name == "Severity"]
        members = {n.target.id for n in (nested or [body])[0] if isinstance(n, ast.AnnAssign)}
        assert {member.name for member in kind} <= members, kind.__name__


def test_the_stand_in_has_rtxs_names_and_parameters():
    rtx = pytest.importorskip("tensorrt_rtx")
    for kind in STANDINS:
        for name, parameters in calls_of(kind).items():
            text = getattr(getattr(rtx, kind.__name__), name).__doc__
            # pybind writes each overload's signature at the head of a line.
            found = [
                [p.partition(":")[0].strip() for p in re.split(r", (?=\w+:)", signature)][1:]
                for signature in re.findall(rf"{name}\((self: .*)\) ->", text)
            ]
            assert parameters in found, (kind.__name__, name, parameters, found)
    for attribute in ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"):
        assert isinstance(getattr(rtx.IRuntimeConfig, attribute), property)
    for attribute in ("num_io_tensors", "num_optimization_profiles"):
        assert isinstance(getattr(rtx.ICudaEngine, attribute), property)
    assert "serialized_engine" in rtx.Runtime.deserialize_cuda_engine.__doc__
    for kind in ENUMERATIONS:
        real = rtx.ILogger.Severity if kind.__name__ == "Severity" else getattr(rtx, kind.__name__)
        for member in kind:
            assert isinstance(member, enum.Enum)
            assert int(getattr(real, member.name)) == member.value, member
