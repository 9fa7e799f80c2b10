"""The time left that the bar shows."""

from __future__ import annotations

import pytest

from vitcx.commands.progress import count, progress_bar, skip


@pytest.fixture
def bar():
    """A bar of 100 pictures whose clock the test moves."""
    now = [0.0]
    progress = progress_bar()
    progress.get_time = lambda: now[0]
    return progress, progress.add_task("explaining", total=100), now


def left(progress, task):
    return progress.columns[-1].render(progress.tasks[task]).plain


def test_the_time_left_is_that_of_the_average_speed(bar):
    progress, task, now = bar
    assert left(progress, task) == "-:--:-- left"
    for _ in range(20):  # twenty at once after 10 seconds, as pictures that share batches come
        now[0] = 10.0
        count(progress, task, new=True)
    now[0] = 20.0
    assert left(progress, task) == "0:01:20 left"


def test_what_was_done_before_is_no_part_of_the_speed(bar):
    progress, task, now = bar
    skip(progress, task, 50)
    count(progress, task, new=False)
    assert left(progress, task) == "-:--:-- left"
    now[0] = 3.0
    count(progress, task, new=True)
    assert left(progress, task) == "0:02:24 left"
    assert progress.tasks[task].completed == 52
