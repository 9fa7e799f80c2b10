"""A job over a data set that can be stopped at any moment and continued.

The list of pictures is cut into shards by position alone. A shard is explained from its first
picture to its last by one pipeline, and appears on disk when it is whole; nothing else records
progress. So a job that was killed repeats at most one shard, and repeats it bit for bit: what
shares a batch with what depends on the shard alone. A shard's digest stands beside it: one that has
changed since is made again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitcx.dataset.description import read_description
from vitcx.dataset.shards import DIGESTS_NAME, errors_in, is_whole, rows_of, write_shard
from vitcx.dataset.written import OutputLostError, WrittenFiles
from vitcx.kernels.closing import Closing
from vitcx.runtime.digests import replacing
from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.folder_lock import FolderLock
from vitcx.runtime.pictures.overlay import drawing
from vitcx.sources.items import Item, digest_of

log = logging.getLogger("vitcx")

JOB_NAME, LOCK_NAME, OVERLAYS_NAME = "_job.json", "_job.lock", "_overlays"
JOB_SCHEMA = 1
MOST_STEM_BYTES = 180


@dataclass(frozen=True)
class Output:
    """What is kept of an explanation.

    Attributes
    ----------
    resolution : of the saliency, ``patch`` (mean over each patch) or ``full`` (the model's input).
    dtype : of the saliency, ``float16`` or ``float32``.
    shard_size : pictures in a shard.
    overlays : also write ``_overlays/INDEX_NAME.png``.
    """

    resolution: str = "patch"
    dtype: str = "float16"
    shard_size: int = 256
    overlays: bool = False


@dataclass(frozen=True)
class Summary:
    """How a job ended: pictures by fate; seconds are the caller's to measure."""

    pictures: int
    explained: int
    failed: int
    already_done: int
    shards: int


class Job(Closing):
    """A data set, its settings and its output folder, which no other job works in until `close`.

    Parameters
    ----------
    explainer : who explains.
    items : the list, in order.
    out : the folder.
    output : what is written.
    targets, settings : as for `Explainer.explain`; an item's own target goes first.
    resume : go on in a folder where the same job was begun.
    attach : take part in a job that another process has begun, and leave the folder as it is.

    Raises
    ------
    InputError
        If the folder holds another job, or this one without `resume`, or another job is at work.
    """

    def __init__(
        self,
        explainer: Explainer,
        items: list[Item],
        out: Path,
        output: Output,
        *,
        targets: Any = None,
        resume: bool = False,
        attach: bool = False,
        **settings: Any,
    ) -> None:
        self._explainer, self._items, self._out = explainer, items, out
        self._output, self._targets, self._settings = output, targets, settings
        self._lock: FolderLock | None = None
        self._written = WrittenFiles()
        if not attach:
            self._begin(resume)
        self._written.note(self._out / JOB_NAME)

    def close(self) -> None:
        """Let other jobs into the folder. Twice does no harm."""
        if self._lock:
            self._lock.close()

    @property
    def shard_count(self) -> int:
        return -(-len(self._items) // self._output.shard_size)

    def shard_path(self, shard: int) -> Path:
        return self._out / f"part-{shard:05d}.parquet"

    def items_of(self, shard: int) -> list[tuple[int, Item]]:
        """The pictures of a shard with their positions in the whole list."""
        first = shard * self._output.shard_size
        part = self._items[first : first + self._output.shard_size]
        return list(enumerate(part, start=first))

    def is_done(self, shard: int) -> bool:
        """Whether the shard is on disk as it was written; reads all of it."""
        return is_whole(self.shard_path(shard), len(self.items_of(shard)))

    def run(self, progress: Callable[[int, bool], None] = lambda pictures, new: None) -> Summary:
        """Write the shards that are not there yet.

        Parameters
        ----------
        progress : told how many more pictures are done, and whether they were explained just now.
        """
        already = 0
        for shard in range(self.shard_count):
            pictures = len(self.items_of(shard))
            if self.is_done(shard):
                self.note_written(shard)
                already += pictures
                progress(pictures, False)
            else:
                self.run_shard(shard, lambda: progress(1, True))
        return self.sum_up(already)

    def sum_up(self, already: int) -> Summary:
        """The end of a job, once it is sure that all it wrote is there.

        Parameters
        ----------
        already : pictures of shards that were there before.

        Raises
        ------
        OutputLostError
            If a shard was removed or changed since it was written.
        """
        paths = [self.shard_path(shard) for shard in range(self.shard_count)]
        lost = [path.name for path in paths if not self._written.is_there(path)]
        if lost:
            named = ", ".join(lost[:3]) + (" ..." if len(lost) > 3 else "")
            raise OutputLostError(
                f"{len(lost)} of {self.shard_count} shards in '{self._out}' were removed or "
                f"changed since they were written ({named}): {self._remedy()}"
            )
        self._check_folder()
        failed = sum(map(errors_in, paths))
        total = len(self._items)
        return Summary(total, total - failed, failed, already, self.shard_count)

    def note_written(self, shard: int) -> None:
        """Take a shard as it is now for what was written."""
        self._written.note(self.shard_path(shard))

    def _check_folder(self) -> None:
        """Refuse to write to a folder that is no longer this job's."""
        path = self._out / JOB_NAME
        if not self._written.is_there(path):
            why = f"'{path}' was removed or changed while the job ran"
            raise OutputLostError(f"{why}: {self._remedy()}")

    def _remedy(self) -> str:
        if self._written.is_there(self._out / JOB_NAME):
            return "go on with --resume"
        return "begin again, with another --out"

    def run_shard(self, shard: int, progress: Callable[[], None] = lambda: None) -> None:
        """Explain the pictures of one shard and write it, also in the place of a damaged one."""
        if self.shard_path(shard).exists():
            log.warning("'%s' is damaged: it is made again", self.shard_path(shard))
        numbered = self.items_of(shard)
        requests = (
            self._explainer.request(
                item.picture(),
                self._targets if item.target is None else item.target,
                **self._settings,
            )
            for _, item in numbered
        )
        rows: list[dict[str, Any]] = []
        # Closed also when an overlay cannot be written: its threads use the engine.
        with closing(self._explainer.explain_requests(requests)) as results:
            for (index, item), result in zip(numbered, results, strict=True):
                if self._output.overlays and isinstance(result, Explanation):
                    self._write_overlays(index, item, result)
                rows += rows_of(index, item, result, self._output.resolution, self._output.dtype)
                progress()
        self._check_folder()
        word = self._explainer.manifest.score_word
        write_shard(self.shard_path(shard), rows, self._output.dtype, word)
        self.note_written(shard)

    def _write_overlays(self, index: int, item: Item, result: Explanation) -> None:
        self._check_folder()
        name = f"{index:08d}_{_shown(Path(item.path).stem)}"
        for i, target in enumerate(result.targets):
            end = "" if i == 0 else f".{target}"
            with replacing(self._out / OVERLAYS_NAME / f"{name}{end}.png") as path, drawing():
                result.overlay(i, caption=True).save(path)

    def _begin(self, resume: bool) -> None:
        """Check the folder against the job, or make it; clear what a killed job left half done."""
        description = self._describe()
        if self._out.exists() and not self._out.is_dir():
            raise InputError(f"'{self._out}' is a file: give a folder")
        self._out.mkdir(parents=True, exist_ok=True)
        taken = f"another job is at work in '{self._out}': wait for its end, or give another --out"
        self._lock = FolderLock(self._out, LOCK_NAME, taken)
        try:
            self._claim(description, resume)
        except BaseException:
            self.close()
            raise

    def _claim(self, description: dict[str, Any], resume: bool) -> None:
        path = self._out / JOB_NAME
        if os.path.lexists(path):
            found = read_description(path)
            if not resume:
                raise InputError(
                    f"'{self._out}' holds a job already: go on with --resume, or give another --out"
                )
            unknown = found.keys() - description.keys()
            changed = sorted({k for k in description if description[k] != found.get(k)} | unknown)
            if changed:
                raise InputError(
                    f"the job in '{self._out}' was started with another {', '.join(changed)}: "
                    "resume with the same, or give another --out"
                )
        elif any(self._out.glob("part-*.parquet")):
            raise InputError(f"'{self._out}' holds shards but no {JOB_NAME}: give another --out")
        for left in [
            *self._out.glob(".part-*.parquet"),
            *self._out.glob("._job.*.json"),
            *self._out.glob(f"{OVERLAYS_NAME}/.*.png"),
            *self._out.glob(f"{DIGESTS_NAME}/.*.sha256"),
        ]:
            left.unlink(missing_ok=True)
        if not os.path.lexists(path):
            # Shards without it cannot be gone on with.
            with replacing(path, durable=True) as temporary:
                text = json.dumps(description, indent=2, ensure_ascii=False)
                temporary.write_text(text + "\n", encoding="utf-8")

    def _describe(self) -> dict[str, Any]:
        """All that the shards' contents depend on."""
        explainer = self._explainer
        template = explainer.request(None, None, **self._settings)
        word = explainer.manifest.score_word
        # Shards that an earlier vitcx wrote of scores have another column: the two do not mix.
        column = {} if word == "probability" else {"score_column": word}
        return {
            **column,
            "schema": JOB_SCHEMA,
            "pictures": len(self._items),
            "source_sha256": digest_of(self._items),
            "targets": self._targets,
            "settings": asdict(template.settings),
            "output": asdict(self._output),
            "model": explainer.manifest.model_name,
            "model_sha256": explainer.manifest.model_sha256,
            "engine": explainer.session.engine,
            "batch_size": explainer.session.batch_size,
        }


def _shown(stem: str) -> str:
    """A picture's name as part of another file's: a tar member may be called anything."""
    printable = "".join(c if c.isprintable() else "_" for c in stem)
    # Most file systems take 255 bytes; the index, the target and a temporary name need some.
    return printable.encode()[:MOST_STEM_BYTES].decode(errors="ignore")
