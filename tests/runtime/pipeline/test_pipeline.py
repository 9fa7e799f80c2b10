"""The pipeline: packing, order, bounds, cancelling, and failing alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import numpy as np
import pytest
from PIL import Image

import vitcx
from tests.tiny_bundle import random_picture, write_tiny_bundle
from vitcx.runtime.engines.session import PixelBatch, Scores, Session
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.pipeline.pipeline import Pipeline
from vitcx.runtime.pipeline.stages import Steps

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

# ONNX Runtime's CPU kernels may sum in another order for another batch; float32 probabilities move
# by less than this.
COMPOSITION_ATOL = 1e-6
WAIT = 20  # seconds: a deadlock fails the test, it does not hang it


class Watched(Session):
    """A session that notes every call, can be held at a gate, and can be made to fail."""

    def __init__(self, inner: Session) -> None:
        super().__init__()
        self.inner = inner
        self.engine, self.device, self.batch_size = inner.engine, inner.device, inner.batch_size
        self.rows: list[int] = []
        self.images_per_batch: list[int] = []
        self.encoded: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.fail_batches: set[int] = set()
        self.nan_for: set[float] = set()

    def _encode(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.encoded.append(len(images))
        probabilities, embedding = self.inner.encode(images)
        for i, image in enumerate(images):
            if float(image[0, 0, 0]) in self.nan_for:
                embedding[i] = np.nan
        return probabilities, embedding

    def _score(self, batch: PixelBatch) -> Scores:
        self.rows.append(batch.rows)
        self.images_per_batch.append(len(batch.images))
        number = len(self.rows)
        self.entered.release()
        assert self.gate.wait(WAIT)
        if number in self.fail_batches:
            raise RuntimeError("the device is gone")
        return self.inner.score(batch)

    def _predict(self, images: np.ndarray) -> np.ndarray:
        return self.inner.predict(images)

    def _close(self) -> None:
        self.inner.close()


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_bundle(folder)
    return str(folder)


@pytest.fixture
def explainer(bundle_path: str) -> Iterator[Explainer]:
    with vitcx.load(bundle_path, engine="onnxruntime", threads=1, batch_size=8) as loaded:
        loaded.session = Watched(loaded.session)
        yield loaded


def watched(explainer: Explainer) -> Watched:
    assert isinstance(explainer.session, Watched)
    return explainer.session


@pytest.mark.parametrize("estimator", ["paper", "fast", "antithetic"])
def test_packed_is_the_same_as_alone(explainer: Explainer, estimator: str) -> None:
    pictures = [random_picture(seed) for seed in range(9)]
    alone = [explainer.explain(p, "top2", estimator=estimator) for p in pictures]
    watched(explainer).rows.clear()
    packed = list(explainer.explain_many(pictures, "top2", estimator=estimator))
    for one, other in zip(alone, packed, strict=True):
        assert one.targets == other.targets
        np.testing.assert_allclose(one.impacts, other.impacts, atol=COMPOSITION_ATOL)
        np.testing.assert_allclose(one.saliency, other.saliency, atol=COMPOSITION_ATOL)
    rows = watched(explainer).rows
    assert all(count == 8 for count in rows[:-1]), "only the last batch may be short"
    assert sum(rows) == sum(one.settings["forward_passes"] - 1 for one in alone)


def test_batch_composition_does_not_depend_on_the_clock(explainer: Explainer) -> None:
    rng = np.random.default_rng(0)

    def slow_now_and_then(seed: int) -> Iterator[np.ndarray]:
        pause = np.random.default_rng(seed)
        for i in range(30):
            if pause.random() < 0.3:
                time.sleep(pause.random() * 0.01)
            yield random_picture(i)

    seen = []
    for attempt in range(3):
        session = watched(explainer)
        session.rows.clear()
        session.images_per_batch.clear()
        for _ in explainer.explain_many(slow_now_and_then(attempt), estimator="fast"):
            if rng.random() < 0.2:
                time.sleep(rng.random() * 0.01)
        seen.append((list(session.rows), list(session.images_per_batch)))
    assert seen[0] == seen[1] == seen[2]


def test_no_more_pictures_are_read_than_the_limit(explainer: Explainer) -> None:
    read = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield random_picture(read)

    with explainer.open_pipeline(limit=4) as pipeline:
        requests = (explainer.request(picture) for picture in endless())
        results = pipeline.stream(requests)
        for taken in range(1, 6):
            next(results).result()
            assert read <= taken + 4


def test_pictures_without_enough_rows_to_fill_a_batch_do_not_block(explainer: Explainer) -> None:
    # One row each, and a window of 3 pictures for a batch of 8.
    flat = [np.full((32, 32, 3), i, np.uint8) for i in range(7)]
    with explainer.open_pipeline(limit=3) as pipeline:
        requests = [
            explainer.request(p, distance_threshold=1.0, estimator="fast")
            for p in [*flat, random_picture(1)]
        ]
        results = [ticket.result(WAIT) for ticket in pipeline.stream(requests)]
    assert len(results) == 8


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order_with_any_number_of_threads(
    explainer: Explainer, workers: int
) -> None:
    pictures = [random_picture(seed) for seed in range(12)]
    expected = [explainer.explain(p).probabilities for p in pictures]
    with explainer.open_pipeline(workers=workers) as pipeline:
        tickets = list(pipeline.stream(explainer.request(p) for p in pictures))
    for ticket, probabilities in zip(tickets, expected, strict=True):
        np.testing.assert_allclose(
            ticket.result().probabilities, probabilities, atol=COMPOSITION_ATOL
        )


def test_a_picture_that_fails_fails_alone(explainer: Explainer, tmp_path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    normalised = np.zeros((3, 32, 32), np.float32)
    normalised[0, 0, 0] = 7.0
    watched(explainer).nan_for.add(7.0)
    pictures = [
        random_picture(1),
        damaged,
        tmp_path / "missing.png",
        normalised,
        object(),
        random_picture(2),
    ]
    results = list(explainer.try_explain_many(pictures))
    kinds = [type(result).__name__ for result in results]
    assert kinds[:4] == ["Explanation", "InputError", "InputError", "NoAnswerError"]
    assert kinds[5] == "Explanation"
    assert isinstance(results[4], Exception)
    assert "NaN" in str(results[3])
    with pytest.raises(vitcx.InputError, match="damaged"):
        list(explainer.explain_many(pictures))


def test_a_bad_target_fails_alone(explainer: Explainer) -> None:
    good, bad = random_picture(1), random_picture(2)
    requests = [explainer.request(good, "cat"), explainer.request(bad, "cow")]
    first, second = explainer.explain_requests(requests)
    assert isinstance(first, vitcx.Explanation)
    assert first.target_names == ("cat",)
    assert isinstance(second, vitcx.InputError)


def test_an_engine_that_fails_ends_the_pipeline(explainer: Explainer) -> None:
    watched(explainer).fail_batches = {3}
    with pytest.raises(RuntimeError, match="device is gone"):
        list(explainer.try_explain_many([random_picture(i) for i in range(20)]))


def test_a_failed_batch_takes_only_its_own_pictures(explainer: Explainer) -> None:
    session = watched(explainer)
    with explainer.open_pipeline(in_order=False, workers=2, limit=2) as pipeline:
        session.fail_batches = {1}
        lost = pipeline.submit(explainer.request(random_picture(0)))
        assert isinstance(lost.exception(WAIT), RuntimeError)
        assert lost.engine_failed
        assert pipeline.engine_error is not None
        kept = pipeline.submit(explainer.request(random_picture(1)))
        assert kept.result(WAIT)
        assert not kept.engine_failed
        assert pipeline.engine_error is None


def test_cancelling_drops_the_rows_that_wait(explainer: Explainer) -> None:
    session = watched(explainer)
    session.gate.clear()
    with explainer.open_pipeline(in_order=False, workers=2) as pipeline:
        every_mask = {"cluster_masks": "none", "estimator": "antithetic"}  # 24 rows: 3 batches
        unwanted = pipeline.submit(explainer.request(random_picture(0), **every_mask))
        assert session.entered.acquire(timeout=WAIT)
        wanted = pipeline.submit(explainer.request(random_picture(1), **every_mask))
        assert unwanted.cancel()
        session.gate.set()
        assert wanted.result(WAIT)
        assert pipeline.pending_rows == 0
    with pytest.raises(CancelledError):
        unwanted.result()
    assert sum(session.rows) == 8 + 24


def test_closing_cancels_and_stops_the_threads(explainer: Explainer) -> None:
    before = threading.active_count()
    session = watched(explainer)
    session.gate.clear()
    pipeline = explainer.open_pipeline(workers=3, in_order=False)
    tickets = [pipeline.submit(explainer.request(random_picture(i))) for i in range(6)]
    assert session.entered.acquire(timeout=WAIT)
    threading.Timer(0.05, session.gate.set).start()
    pipeline.close()
    pipeline.close()
    assert all(ticket.done() for ticket in tickets)
    assert threading.active_count() <= before + 1  # the timer
    with pytest.raises(RuntimeError, match="closed"):
        pipeline.submit(explainer.request(random_picture(0)))


def test_a_generator_left_halfway_leaves_no_threads(explainer: Explainer) -> None:
    before = threading.active_count()
    results = explainer.explain_many(random_picture(i) for i in range(1000))
    next(results)
    results.close()
    assert threading.active_count() == before


def test_requests_of_many_threads_share_batches(explainer: Explainer) -> None:
    session = watched(explainer)
    expected = [explainer.explain(random_picture(i)).impacts for i in range(16)]
    session.rows.clear()
    session.images_per_batch.clear()
    session.gate.clear()
    with explainer.open_pipeline(in_order=False, workers=2, limit=16) as pipeline:
        tickets = [pipeline.submit(explainer.request(random_picture(i))) for i in range(16)]
        assert session.entered.acquire(timeout=WAIT)
        deadline = time.monotonic() + WAIT
        while pipeline.pending_rows < 8 and time.monotonic() < deadline:
            time.sleep(0.002)  # the others are encoded while the first batch is with the engine
        session.gate.set()
        for ticket, impacts in zip(tickets, expected, strict=True):
            np.testing.assert_allclose(ticket.result(WAIT).impacts, impacts, atol=COMPOSITION_ATOL)
    assert max(session.images_per_batch) > 1


def test_pictures_are_encoded_together_where_asked(explainer: Explainer) -> None:
    session = watched(explainer)
    with Pipeline(
        Steps(explainer.manifest, explainer.session), limit=8, workers=2, encode_size=3
    ) as pipeline:
        requests = [explainer.request(random_picture(i)) for i in range(8)]
        results = [ticket.result(WAIT) for ticket in pipeline.stream(requests)]
    assert len(results) == 8
    assert session.encoded == [3, 3, 2]


def test_memory_held_does_not_grow_with_the_number_of_pictures(explainer: Explainer) -> None:
    """The pictures of finished explanations are let go of: counted by weak references."""
    import weakref

    alive: list[weakref.ref[Image.Image]] = []

    def pictures() -> Iterator[Image.Image]:
        for i in range(60):
            picture = Image.fromarray(random_picture(i))
            alive.append(weakref.ref(picture))
            yield picture
            del picture

    most = 0
    for _ in explainer.explain_many(pictures()):
        most = max(most, sum(ref() is not None for ref in alive))
    assert most <= 12
