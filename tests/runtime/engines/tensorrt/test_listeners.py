"""Who hears what TensorRT logs, where several threads use it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from vitcx.runtime.engines.tensorrt.library import Listeners


def on_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_thread_hears_of_its_own_calls_alone() -> None:
    listeners = Listeners()
    with listeners.listening() as mine:

        def another() -> None:
            with listeners.listening() as theirs:
                assert listeners.tell((1, "theirs"))
                assert theirs == [(1, "theirs")]

        on_a_thread(another)
        assert listeners.tell((1, "mine"))
    assert mine == [(1, "mine")]


def test_what_the_librarys_own_threads_say_is_heard_by_all() -> None:
    listeners = Listeners()
    with listeners.listening() as outer, listeners.listening() as inner:
        on_a_thread(lambda: listeners.tell((1, "a builder's thread")))
    assert outer == inner == [(1, "a builder's thread")]
    assert not listeners.tell((1, "later"))


def test_threads_that_come_and_go_lose_no_message() -> None:
    """Each hears all of its own, though others begin and end to listen meanwhile."""
    listeners = Listeners()

    def listen(number: int) -> bool:
        with listeners.listening() as messages:
            for step in range(3):
                listeners.tell((number, str(step)))
        return messages == [(number, str(step)) for step in range(3)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            heard = list(pool.map(listen, range(2000)))
    finally:
        sys.setswitchinterval(interval)
    assert heard.count(False) == 0
    assert not listeners.tell((1, "nobody is left"))
