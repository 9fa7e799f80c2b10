"""Passes side by side give what one pass gives, and use the threads they were given."""

import threading
import time

import numpy as np
import pytest

from tests.tiny_bundle import SIZE, random_picture, write_tiny_bundle
from vitcx.runtime.engines.cpu.parallel_passes import PASS_ROWS, ParallelPasses
from vitcx.runtime.errors import EngineError
from vitcx.runtime.explainer import load

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("items", [1, 2, 7])
def test_the_slices_cover_every_row_once_and_answers_keep_their_order(count, items):
    with ParallelPasses(count) as passes:
        parts = passes.map(lambda part: list(range(items))[part], items)
    assert [row for part in parts for row in part] == list(range(items))
    assert max(map(len, parts)) <= PASS_ROWS


def test_every_thread_has_as_many_slices_as_the_others():
    with ParallelPasses(2) as passes:
        lengths = [part.stop - part.start for part in passes.map(lambda part: part, 14)]
    assert lengths == [2, 2, 2, 2, 2, 2, 1, 1]


def test_two_passes_run_at_the_same_time():
    meeting = threading.Barrier(2)
    with ParallelPasses(2) as passes:  # one after the other, they would wait here for ever
        passes.map(lambda _: meeting.wait(timeout=20), 2 * PASS_ROWS)


@pytest.mark.parametrize("count", [1, 2])
def test_one_piece_of_work_has_its_turn(count):
    with ParallelPasses(count) as passes:
        thread = passes.run(threading.current_thread)
    assert (thread is threading.current_thread()) == (count == 1)


def test_what_a_pass_raises_reaches_the_caller():
    def fail(part: slice) -> None:
        raise EngineError(f"row {part.start}")

    with ParallelPasses(2) as passes, pytest.raises(EngineError, match="row 0"):
        passes.map(fail, 4)


def test_no_pass_is_running_when_another_ones_error_reaches_the_caller():
    """The rows are a buffer that the caller's next batch uses."""
    running, failed = threading.Event(), threading.Event()
    written = []

    def work(part: slice) -> None:
        if part.start == 0:
            running.wait(20)
            failed.set()
            raise EngineError("row 0")
        running.set()
        failed.wait(20)
        time.sleep(0.2)  # the error is on its way to the caller
        written.append(part.start)

    with ParallelPasses(2) as passes:
        with pytest.raises(EngineError, match="row 0"):
            passes.map(work, 2, size=1)
        seen = list(written)
    assert seen == written == [1]


def test_probabilities_and_maps_do_not_depend_on_threads_or_batch_size(tmp_path):
    write_tiny_bundle(tmp_path)
    rows = np.random.default_rng(1).standard_normal((9, 3, SIZE, SIZE), dtype=np.float32)
    answers, maps = [], []
    for threads, batch_size in ((1, 1), (1, 16), (2, 3), (3, 5), (4, 64), (None, None)):
        with load(tmp_path, "onnxruntime", threads, batch_size) as explainer:
            answers.append(explainer.session.predict(rows))
            maps.append(explainer.explain(random_picture(0)).saliency)
    # The same sums in another order: float32 rounding of numbers of order 1.
    for answer, found in zip(answers, maps, strict=True):
        np.testing.assert_allclose(answer, answers[0], atol=1e-6)
        np.testing.assert_allclose(found, maps[0], atol=1e-6)


def test_a_closed_session_says_so(tmp_path):
    write_tiny_bundle(tmp_path)
    explainer = load(tmp_path, "onnxruntime", threads=2)
    explainer.close()
    explainer.close()
    with pytest.raises(EngineError, match="closed"):
        explainer.explain(random_picture(0))
    with pytest.raises(EngineError, match="closed"):
        explainer.session.predict(np.zeros((4, 3, SIZE, SIZE), np.float32))
