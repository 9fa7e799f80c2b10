"""The progress bar of the subcommands: on stderr, and only where a person looks at it."""

from __future__ import annotations

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from vitcx.commands.terminal import make_console


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
        BarColumn(),
        MofNCompleteColumn(),
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=not (wanted and console.is_terminal),
    )


def skip(progress: Progress, task: TaskID, many: int) -> None:
    """Count what had been done before: unlike `advance`, it is no part of the speed."""
    progress.tasks[progress.task_ids.index(task)].completed += many
    progress.update(task)


def count(progress: Progress, task: TaskID, *, new: bool) -> None:
    """Count one, made now or done before."""
    if new:
        progress.advance(task)
    else:
        skip(progress, task, 1)
