"""A session's life: calls in flight, closing, and another process."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.tiny_bundle import SIZE, random_picture, write_tiny_bundle
from vitcx.runtime.engines.session import PixelBatch, Scores, Session
from vitcx.runtime.errors import EngineError, VitcxError
from vitcx.runtime.explainer import load

WAIT = 20  # seconds: a deadlock fails the test, it does not hang it


class Held(Session):
    """A session whose calls can be held at a gate."""

    engine = device = "held"
    batch_size = 1

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.gate = threading.Semaphore(0), threading.Event()
        self.freed = 0
        self.during: Callable[[], None] | None = None

    def _encode(self, images):
        self.inside.release()
        assert self.gate.wait(WAIT)
        assert not self.freed, "freed while a call is running"
        if self.during is not None:
            self.during()
        return images, images

    def _score(self, batch: PixelBatch) -> Scores:
        return Scores(self._encode(batch.images)[0], 0.0, 0.0)

    def _predict(self, images):
        return self._encode(images)[0]

    def _close(self) -> None:
        self.freed += 1


NOTHING = np.zeros(1, np.float32)


def test_closing_waits_for_the_calls_that_are_running():
    session = Held()
    with ThreadPoolExecutor(4) as threads:
        calls = [
            threads.submit(call, argument)
            for call, argument in (
                (session.encode, NOTHING),
                (session.predict, NOTHING),
                (session.score, PixelBatch()),
            )
        ]
        for _ in calls:
            assert session.inside.acquire(timeout=WAIT)
        closing = threads.submit(session.close)
        with pytest.raises(concurrent.futures.TimeoutError):
            closing.result(timeout=0.1)
        with pytest.raises(EngineError, match="closed: load the bundle again"):
            session.encode(NOTHING)
        session.gate.set()
        for call in calls:
            call.result(WAIT)
        closing.result(WAIT)
    session.close()
    assert session.freed == 1


def test_a_call_that_closes_its_own_session_is_refused():
    session = Held()
    session.gate.set()
    session.during = session.close
    with pytest.raises(EngineError, match="its own calls"):
        session.predict(NOTHING)
    session.close()
    assert session.freed == 1


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_session_closed_under_load_refuses_and_harms_nothing(tmp_path, engine):
    pytest.importorskip("onnx")
    pytest.importorskip(engine)
    write_tiny_bundle(tmp_path)
    explainer = load(tmp_path, engine, threads=2, batch_size=4)
    rows = np.zeros((4, 3, SIZE, SIZE), np.float32)
    expected = explainer.session.predict(rows)
    begun = threading.Semaphore(0)

    def until_refused() -> VitcxError:
        while True:
            try:
                found = explainer.session.predict(rows)
            except VitcxError as error:
                return error
            np.testing.assert_array_equal(found, expected)
            begun.release()

    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(until_refused) for _ in range(4)]
        for _ in range(8):
            assert begun.acquire(timeout=WAIT)
        explainer.close()
        for call in calls:
            assert "closed" in str(call.result(WAIT))


def explain_in_the_child(explainer, answers) -> None:
    for call in (
        lambda: explainer.explain(random_picture(0)),
        lambda: list(explainer.explain_many([random_picture(0)])),
        lambda: explainer.session.predict(np.zeros((8, 3, SIZE, SIZE), np.float32)),
    ):
        try:
            answers.put(repr(call()))
        except EngineError as error:
            answers.put(str(error))
    explainer.close()  # does nothing here, and does not wait


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_forked_child_is_told_to_load_its_own(tmp_path, engine):
    pytest.importorskip("onnx")
    pytest.importorskip(engine)
    write_tiny_bundle(tmp_path)
    with load(tmp_path, engine, threads=2, batch_size=4) as explainer:
        before = explainer.explain(random_picture(0)).saliency
        forking = multiprocessing.get_context("fork")
        answers = forking.SimpleQueue()
        child = forking.Process(target=explain_in_the_child, args=(explainer, answers))
        child.start()
        child.join(WAIT)
        hangs = child.is_alive()
        child.kill()
        assert not hangs
        assert child.exitcode == 0
        for _ in range(3):
            assert answers.get() == (
                "this explainer was loaded in another process: call vitcx.load in this one"
            )
        np.testing.assert_array_equal(explainer.explain(random_picture(0)).saliency, before)
