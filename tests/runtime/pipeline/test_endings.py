"""Every ticket ends, with a result or an error, and nothing of a picture stays behind."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import multiprocessing
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitcx
from tests.runtime.pipeline.test_pipeline import WAIT, Watched
from tests.tiny_bundle import random_picture, write_tiny_bundle
from vitcx.runtime.engines.session import PixelBatch, Scores
from vitcx.runtime.errors import EngineError
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.pipeline.packing import Packer
from vitcx.runtime.pipeline.runner import Runner
from vitcx.runtime.pipeline.stages import Steps

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def explainer(tmp_path) -> Iterator[Explainer]:
    write_tiny_bundle(tmp_path)
    with vitcx.load(tmp_path, engine="onnxruntime", threads=1, batch_size=8) as loaded:
        loaded.session = Watched(loaded.session)
        yield loaded


def burst(error: BaseException) -> Callable[..., Any]:
    def raise_it(*arguments: Any, **named: Any) -> Any:
        raise error

    return raise_it


# --- a thread that dies ---------------------------------------------------------------------------


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("error", [MemoryError("no room"), SystemExit("exit")])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Steps, "prepare"),
        (Steps, "encode"),
        (Steps, "choose_masks"),
        (Steps, "finish"),
        (Packer, "pack"),
        (Packer, "add"),
        (Runner, "_settle"),
    ],
)
def test_every_ticket_ends_whatever_is_raised_wherever(
    explainer: Explainer, monkeypatch, in_order: bool, error: BaseException, owner: type, name: str
) -> None:
    real, calls = getattr(owner, name), []

    def fail_once(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, fail_once)
    before = threading.active_count()
    with explainer.open_pipeline(workers=3, in_order=in_order) as pipeline:
        requests = [explainer.request(random_picture(i)) for i in range(6)]
        tickets = [pipeline.submit(request) for request in requests]
        pipeline.end()
        _, waiting = concurrent.futures.wait(tickets, WAIT)
        assert not waiting
        failed = [ticket for ticket in tickets if ticket.exception() is not None]
        assert failed
        if pipeline.alive:  # it was one picture's, or one batch's
            assert all(ticket.exception() is error for ticket in failed)
            assert pipeline.submit(requests[0]).result(WAIT)
        else:
            assert all(ticket.engine_failed for ticket in failed)
            late = pipeline.submit(requests[0])
            assert late.done()
            assert late.engine_failed
            assert isinstance(late.exception(), Exception)
    assert threading.active_count() == before


def test_a_callback_that_raises_ends_the_pipeline_with_its_error(
    explainer: Explainer, caplog
) -> None:
    error = ValueError("a fault of the caller's")
    with (
        caplog.at_level(logging.ERROR, "vitcx"),
        explainer.open_pipeline(on_batch=burst(error)) as pipeline,
    ):
        tickets = [pipeline.submit(explainer.request(random_picture(i))) for i in range(6)]
        pipeline.end()
        for ticket in tickets:
            assert ticket.exception(WAIT) is error
            assert ticket.engine_failed
        assert not pipeline.alive
    assert "the pipeline stops: a fault of the caller's" in caplog.text


def test_one_in_the_callers_own_thread_reaches_the_caller(explainer: Explainer) -> None:
    error = ValueError("a fault of the caller's")
    with explainer.open_pipeline(workers=0, on_batch=burst(error)) as pipeline:
        ticket = pipeline.submit(explainer.request(random_picture(0)))
        pipeline.end()
        with pytest.raises(ValueError, match="fault of the caller's"):
            pipeline.run()
        assert ticket.exception(0) is error


class Short(Watched):
    """A session whose scorer has fewer classes, or rows, than were asked for."""

    rows_short, classes_short = 0, 0

    def _score(self, batch: PixelBatch) -> Scores:
        scores = super()._score(batch)
        rows, classes = scores.probabilities.shape
        short = scores.probabilities[: rows - self.rows_short, : classes - self.classes_short]
        return Scores(short, 0.0, 0.0)


@pytest.mark.parametrize("short", [{"rows_short": 1}, {"classes_short": 4}])
def test_a_scorer_that_gives_too_little_fails_its_batch_alone(
    explainer: Explainer, short: dict[str, int]
) -> None:
    assert isinstance(explainer.session, Watched)
    session = explainer.session = Short(explainer.session.inner)
    with explainer.open_pipeline(in_order=False) as pipeline:
        for name, value in short.items():
            setattr(session, name, value)
        lost = pipeline.submit(explainer.request(random_picture(0), "top5"))
        assert isinstance(lost.exception(WAIT), EngineError)
        assert "the engine gave scores" in str(lost.exception())
        assert lost.engine_failed
        assert pipeline.engine_error is not None
        for name in short:
            setattr(session, name, 0)
        assert pipeline.submit(explainer.request(random_picture(0))).result(WAIT)
        assert pipeline.alive
        assert pipeline.engine_error is None


# --- more than the limit, cancelled, cut off ------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("limit", [1, 2, 4])
def test_more_pictures_than_the_limit_in_order(
    explainer: Explainer, workers: int, limit: int
) -> None:
    with explainer.open_pipeline(workers=workers, limit=limit) as pipeline:
        # Few rows each: no batch is ever full.
        tickets = [
            pipeline.submit(explainer.request(random_picture(i), mask_count=3, method="rise"))
            for i in range(11)
        ]
        pipeline.end()
        _, waiting = concurrent.futures.wait(tickets, WAIT)
    assert not waiting
    assert all(ticket.result() for ticket in tickets)


def test_those_who_wait_for_a_cancelled_ticket_are_told(explainer: Explainer) -> None:
    assert isinstance(explainer.session, Watched)
    session = explainer.session
    session.gate.clear()
    with explainer.open_pipeline(in_order=False, workers=2) as pipeline:
        tickets = [pipeline.submit(explainer.request(random_picture(i))) for i in range(2)]
        assert session.entered.acquire(timeout=WAIT)
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(concurrent.futures.wait, tickets, WAIT)
            assert all(ticket.cancel() for ticket in tickets)
            assert all(ticket.cancel() for ticket in tickets)
            session.gate.set()
            assert not waiting.result(WAIT).not_done
        assert not concurrent.futures.wait(tickets, WAIT).not_done
        assert set(concurrent.futures.as_completed(tickets, WAIT)) == set(tickets)


def test_cancelling_and_answering_at_once_never_clash(explainer: Explainer) -> None:
    with explainer.open_pipeline(in_order=False, workers=2) as pipeline:
        for i in range(60):
            ticket = pipeline.submit(explainer.request(random_picture(i), estimator="fast"))
            concurrent.futures.wait([ticket], 0.0005 * (i % 12))
            ticket.cancel()
            assert not concurrent.futures.wait([ticket], WAIT).not_done
        assert pipeline.alive


@pytest.mark.parametrize("count", [0, 5])
def test_what_a_source_raises_comes_after_the_pictures_before_it(
    explainer: Explainer, count: int
) -> None:
    def source() -> Iterator[np.ndarray]:
        for i in range(count):
            yield random_picture(i)
        raise OSError("the disk is gone")

    found: list[vitcx.Explanation] = []
    with pytest.raises(OSError, match="disk is gone"):
        found.extend(explainer.explain_many(source()))
    assert len(found) == count


# --- memory ---------------------------------------------------------------------------------------


def test_a_refused_picture_is_let_go_of_without_the_collector(explainer: Explainer) -> None:
    gone: list[weakref.ref[Any]] = []

    class Bad(np.ndarray):
        """An array of the wrong shape: decoded, and then refused."""

    gc.collect()
    gc.disable()
    try:
        for call in ("submit", "explain", "explain_many"):
            picture = np.zeros((3, 40, 40), np.float32).view(Bad)
            gone.append(weakref.ref(picture))
            if call == "submit":
                with explainer.open_pipeline(in_order=False) as pipeline:
                    ticket = pipeline.submit(explainer.request(picture))
                    assert isinstance(ticket.exception(WAIT), vitcx.InputError)
                    del ticket
            elif call == "explain":
                with pytest.raises(vitcx.InputError):
                    explainer.explain(picture)
            else:
                (result,) = explainer.try_explain_many(iter([picture]))
                assert isinstance(result, vitcx.InputError)
                del result
            del picture
        assert [ref() is None for ref in gone] == [True, True, True]
    finally:
        gc.enable()


def test_a_picture_whose_target_is_refused_is_let_go_of_while_its_ticket_lives(
    explainer: Explainer,
) -> None:
    picture = Image.fromarray(random_picture(0))
    gone = weakref.ref(picture)
    gc.collect()
    gc.disable()
    try:
        with explainer.open_pipeline(in_order=False) as pipeline:
            ticket = pipeline.submit(explainer.request(picture, "no such class"))
            del picture
            assert isinstance(ticket.exception(WAIT), vitcx.InputError)
        assert gone() is None
    finally:
        gc.enable()


# --- another process ------------------------------------------------------------------------------


def submit_in_the_child(pipeline, request, answers) -> None:
    try:
        pipeline.submit(request)
        answers.put("submitted")
    except EngineError as error:
        answers.put(str(error))
    pipeline.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_pipeline_of_the_parent_is_refused_in_a_forked_child(explainer: Explainer) -> None:
    forking = multiprocessing.get_context("fork")
    with explainer.open_pipeline(in_order=False) as pipeline:
        answers = forking.SimpleQueue()
        request = explainer.request(random_picture(0))
        child = forking.Process(target=submit_in_the_child, args=(pipeline, request, answers))
        child.start()
        child.join(WAIT)
        hangs = child.is_alive()
        child.kill()
        assert not hangs
        assert "loaded in another process" in answers.get()
        assert pipeline.submit(request).result(WAIT)
