"""Contexts that threads share: how many there are, who waits, and what is closed when."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vitcx.kernels.closing import Closing
from vitcx.runtime.engines.tensorrt.context_pool import MOST_CONTEXTS, ContextPool
from vitcx.runtime.errors import EngineError


class Context(Closing):
    def __init__(self) -> None:
        self.users = 0
        self.closed = 0

    def use(self) -> None:
        self.users += 1
        assert self.users == 1, "two threads at once"
        time.sleep(0.001)
        self.users -= 1

    def close(self) -> None:
        self.closed += 1


class Maker:
    """Makes contexts, as many as there is room for."""

    def __init__(self, room: int = 100, why: str = "cannot open a context: out of memory") -> None:
        self.made: list[Context] = []
        self.why = why
        self._room = room

    def __call__(self) -> Context:
        if len(self.made) >= self._room:
            raise EngineError(self.why)
        self.made.append(Context())
        return self.made[-1]


def use_by_many(pool: ContextPool[Context], threads: int = 16, times: int = 100) -> None:
    def use(_: int) -> None:
        with pool.take() as context:
            context.use()

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(use, range(times)))


@pytest.mark.parametrize("most", [1, 2, 3])
def test_many_threads_make_no_more_than_so_many(most: int) -> None:
    maker = Maker()
    with ContextPool(maker, most) as pool:
        use_by_many(pool)
        assert 1 <= len(maker.made) <= most
    assert all(context.closed == 1 for context in maker.made)


def test_there_are_two_unless_told() -> None:
    maker = Maker()
    with ContextPool(maker) as pool, pool.take(), pool.take():
        assert len(maker.made) == MOST_CONTEXTS == 2


def test_one_alone_is_made_for_threads_that_come_one_after_the_other() -> None:
    maker = Maker()
    with ContextPool(maker) as pool:
        for _ in range(5):
            use_by_many(pool, threads=1, times=1)
    assert len(maker.made) == 1


def test_where_there_is_no_room_threads_share_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    maker = Maker(room=1)
    with ContextPool(maker) as pool:
        use_by_many(pool)
    assert len(maker.made) == 1
    told = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1
    assert "out of memory" in told[0].getMessage()


def test_an_error_that_is_not_of_memory_is_the_caller_s_and_changes_nothing() -> None:
    """A lost GPU, or a plan that does not fit, was taken for a device that is full."""
    maker = Maker(room=1, why="cannot open a context: unsupported SM")
    with ContextPool(maker) as pool:
        with pool.take(), pytest.raises(EngineError, match="unsupported SM"), pool.take():
            pass
        maker._room = 2
        with pool.take(), pool.take():
            assert len(maker.made) == 2


def test_one_that_failed_is_closed_and_another_takes_its_place() -> None:
    maker = Maker()

    def fail(pool: ContextPool[Context]) -> None:
        with pool.take():
            raise ZeroDivisionError

    with ContextPool(maker, 1) as pool:
        with pytest.raises(ZeroDivisionError):
            fail(pool)
        assert maker.made[0].closed == 1
        with pool.take() as context:
            assert context is maker.made[1]


def test_who_waits_when_it_is_closed_is_told() -> None:
    pool = ContextPool(Maker(), 1)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            with pool.take():
                pass
        except EngineError as error:
            errors.append(error)

    with pool.take() as taken:
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.05)
        pool.close()
        waiting.join(10)
        assert not waiting.is_alive()
        assert taken.closed == 0  # in use
    assert taken.closed == 1
    assert "closed: load the bundle again" in str(errors[0])
