"""The progress bar of the subcommands: on stderr, and only where a person looks at it."""

from __future__ import annotations

import datetime

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

from vitcx.commands.terminal import make_console


class _TimeLeft(ProgressColumn):
    """The time left at the average speed since the start.

    Pictures that share batches end in bursts: the speed of the last seconds says little. What had
    been done before the start counts as done and is no part of the speed.
    """

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        fresh = task.completed - task.fields.get("skipped", 0)
        if task.finished or task.total is None or not task.elapsed or fresh < 1:
            return Text("" if task.finished else "-:--:-- left", style="progress.remaining")
        seconds = task.elapsed / fresh * (task.total - task.completed)
        return Text(f"{datetime.timedelta(seconds=round(seconds))} left", "progress.remaining")


def progress_bar(*columns: ProgressColumn, wanted: bool = True, transient: bool = True) -> Progress:
    """A bar with a count and the time left; `columns` stand before the time left.

    Parameters
    ----------
    columns : further columns.
    wanted : False shows nothing.
    transient : whether the bar goes away at the end.
    """
    console = make_console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        *columns,
        _TimeLeft(),
        console=console,
        transient=transient,
        disable=not (wanted and console.is_terminal),
    )


def skip(progress: Progress, task: TaskID, many: int) -> None:
    """Count what had been done before: unlike `advance`, it is no part of the speed."""
    fields = progress.tasks[progress.task_ids.index(task)].fields
    progress.update(task, advance=many, skipped=fields.get("skipped", 0) + many)


def count(progress: Progress, task: TaskID, *, new: bool) -> None:
    """Count one, made now or done before."""
    if new:
        progress.advance(task)
    else:
        skip(progress, task, 1)
