"""Compiled engines ("plans") kept in the user's cache.

A plan is executable code, tied to the library that built it and to a kind of GPU. So its name is a
digest of all that it depends on, and it is kept as all code is (`vitcx.kernels.code_cache`). What
cannot be trusted is built again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitcx.kernels.code_cache import (
    PRIVATE_FILE,
    code_folder,
    prepare_folder,
    read_code,
    write_code,
)
from vitcx.kernels.files import replacing
from vitcx.runtime.errors import MissingExtraError

log = logging.getLogger("vitcx")

# Part of the key: raise it when what makes a plan changes in a way that the key does not show.
_CACHE_SCHEMA = 4  # 4: the output `tokens` stays
_WHAT = "plan"


@dataclasses.dataclass(frozen=True)
class PlanKey:
    """All that a plan depends on.

    Attributes
    ----------
    files : SHA-256 by name of the bundle's files: its graphs and their weights.
    graph : the name of the one that the plan is of.
    flavour, version : of TensorRT.
    compute_capability, gpu_name : of the GPU it runs on; the name is "" for a plan built ahead of
        time, which runs on any GPU of that capability.
    precision : of the graph.
    shapes, options : of the profiles, and of the builder.
    """

    files: Mapping[str, str]
    graph: str
    flavour: str
    version: str
    compute_capability: str
    gpu_name: str
    precision: str
    shapes: Mapping[str, Any]
    options: Mapping[str, Any]

    def digest(self) -> str:
        """Hexadecimal SHA-256 of the whole key."""
        parts = {"schema": _CACHE_SCHEMA, **dataclasses.asdict(self)}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cache_directory() -> Path:
    """Where plans are kept: the user's cache directory."""
    return code_folder("plans")


def get_or_build(key: PlanKey, build: Callable[[], bytes], directory: Path | None = None) -> bytes:
    """The plan of `key`, from the cache where it is there and can be trusted, else built and kept.

    Two processes that want the same plan build it once: the second waits for the first. A cache
    that cannot be written (no room, no permission) costs the next start its time, and no more.

    Parameters
    ----------
    key : of the plan.
    build : makes it; its errors pass.
    directory : of the cache; default `cache_directory`.

    Raises
    ------
    MissingExtraError
        The module filelock is missing.
    """
    folder = directory or cache_directory()
    if not prepare_folder(folder, _WHAT):
        return build()
    kept = find(key, folder)
    if kept is not None:
        return kept
    with _locked(folder / f"{key.digest()}.lock"):
        kept = find(key, folder)  # whoever held the lock may have built it
        if kept is not None:
            return kept
        made = build()
        keep(key, made, folder)
    return made


def find(key: PlanKey, directory: Path | None = None) -> bytes | None:
    """The plan of `key` if it is in the cache and can be trusted."""
    return read_code(_path(key, directory), _WHAT)


def keep(key: PlanKey, plan: bytes, directory: Path | None = None) -> bool:
    """Put a plan into the cache, and beside it a note of what it is of, for people to read.

    Whether that was done; the log says why not.
    """
    path = _path(key, directory)
    if not write_code(path, plan, _WHAT):
        return False
    note = json.dumps(dataclasses.asdict(key), indent=2) + "\n"
    try:
        with replacing(path.with_suffix(".json"), PRIVATE_FILE) as temporary:
            temporary.write_text(note, encoding="utf-8")
    except OSError as error:  # nothing reads it but people
        log.warning("the note of the plan %s cannot be written: %s", path, error)
    return True


def drop(key: PlanKey, directory: Path | None = None) -> None:
    """Take the plan of `key`, and its runtime caches, out of the cache, if they can be taken."""
    path = _path(key, directory)
    for file in (
        path,
        path.with_suffix(".json"),
        *path.parent.glob(f"{path.stem}.*.runtime-cache"),
    ):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be taken out of the cache: %s", file, error)


def _path(key: PlanKey, directory: Path | None) -> Path:
    return (directory or cache_directory()) / f"{key.digest()}.plan"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file lock `path`; without it, and with a warning, where locks cannot be had."""
    try:
        import filelock
    except ImportError:
        raise MissingExtraError("the plan cache", "filelock", "rtx") from None
    lock = filelock.FileLock(path, mode=PRIVATE_FILE)
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            log.warning("another process builds this plan: waiting for it")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        log.warning("no lock at %s, so a plan may be built twice: %s", path, error)
    try:
        yield
    finally:
        lock.release()  # nothing, where it is not held
