"""The same job on Ray Data: each shard is a row of work for a pool of actors.

Ray places the actors, scales the pool, and gives a dead worker's shards to another. A shard is
written as in a local job (whole or not at all, from its pictures alone), so a shard that is made
twice is the same, and a job begun on Ray can be resumed without it, and the other way round. The
output folder and the source must be visible to every node.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vitcx.dataset.job import Job, Output, Summary
from vitcx.kernels.errors import first_line
from vitcx.runtime.errors import MissingExtraError
from vitcx.runtime.explainer import load
from vitcx.sources.items import Item

# A shard whose worker dies is tried again this often before the job fails.
RETRIES = 5


class _ShardWriter:
    """An actor: an explainer that stays, and writes the shards it is given.

    What goes wrong is handed back as text: of an exception, Ray would make pages.
    """

    def __init__(self, load_with: dict[str, Any], job_with: dict[str, Any]) -> None:
        self._job: Job | None = None
        try:
            self._job = Job(load(**load_with), **job_with, attach=True)
        except Exception as error:
            self._problem = first_line(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        shards = [int(shard) for shard in batch["id"]]
        return {"shard": shards, "problem": [self._write(shard) for shard in shards]}

    def _write(self, shard: int) -> str:
        """Write a shard; gives what went wrong, or "" if nothing did."""
        if self._job is None:
            return self._problem
        try:
            # It may be there: a worker can die between writing and reporting.
            if not self._job.is_done(shard):
                self._job.run_shard(shard)
        except Exception as error:
            return first_line(error)
        return ""


def run_on_ray(
    job: Job,
    load_with: dict[str, Any],
    job_with: dict[str, Any],
    *,
    workers: tuple[int, int],
    gpus_per_worker: float = 0,
    progress: Callable[[int, bool], None] = lambda pictures, new: None,
) -> Summary:
    """Write the shards that are not there yet, on the Ray cluster at hand or a local one.

    Parameters
    ----------
    job : checked and begun here; actors attach to its folder.
    load_with : for `vitcx.load`, in each actor.
    job_with : ``items``, ``out``, ``output``, ``targets`` and settings, in each actor.
    workers : the least and the most actors.
    gpus_per_worker : of each actor; without, it takes one CPU.

    Raises
    ------
    ChildProcessError
        If a worker failed, with what it said; the shards that are written stay.
    """
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError:
        raise MissingExtraError("'vitcx dataset --ray'", "ray", "ray") from None
    missing: list[int] = []
    for shard in range(job.shard_count):
        if job.is_done(shard):
            job.note_written(shard)
            progress(len(job.items_of(shard)), False)
        else:
            missing.append(shard)
    already = sum(len(job.items_of(s)) for s in set(range(job.shard_count)).difference(missing))
    if missing:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        resources: dict[str, Any] = {"num_gpus": gpus_per_worker} if gpus_per_worker else {}
        work = ray.data.from_items([{"id": shard} for shard in missing])
        with _known_deprecation():
            done = work.map_batches(
                _ShardWriter,
                fn_constructor_args=(load_with, job_with),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(min_size=workers[0], max_size=workers[1]),
                num_cpus=1,
                max_restarts=RETRIES,
                max_task_retries=RETRIES,
                **resources,
            )
        try:
            for row in done.iter_rows():
                if row["problem"]:
                    raise ChildProcessError(f"shard {row['shard']} failed: {row['problem']}")
                job.note_written(int(row["shard"]))
                progress(len(job.items_of(int(row["shard"]))), True)
        except ray.exceptions.RayError as error:
            raise ChildProcessError(f"Ray gave up: {first_line(error)}") from None
    return job.sum_up(already)


@contextlib.contextmanager
def _known_deprecation() -> Iterator[None]:
    """Ray takes the limits of retries under names that it means to drop, and has no others yet."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)
        yield


def job_arguments(
    items: list[Item], out: Path, output: Output, targets: Any, settings: dict[str, Any]
) -> dict[str, Any]:
    """What an actor makes its `Job` of; paths are absolute, for actors start elsewhere."""
    return {
        "items": [_absolute(item) for item in items],
        "out": out.resolve(),
        "output": output,
        "targets": targets,
        **settings,
    }


def _absolute(item: Item) -> Item:
    from dataclasses import replace

    if item.member is None:
        # The output shows the path as it was given, wherever the picture is read from.
        return replace(item, root=str(Path.cwd()))
    archive, offset, size = item.member
    return replace(item, member=(str(Path(archive).resolve()), offset, size))
