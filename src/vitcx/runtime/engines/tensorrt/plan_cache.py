"""Compiled engines ("plans") kept in the user's cache.

A plan is executable code, tied to the library that built it and to a kind of GPU. So its name is a
digest of all that it depends on; it is read only from a folder that nobody but the user can write
to, and only if it is the very file that was written: a digest lies beside it. What does not match
is built again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from vitcx.runtime.digests import replacing
from vitcx.runtime.errors import MissingExtraError

log = logging.getLogger("vitcx")

# Part of the key: raise it when what makes a plan changes in a way that the key does not show.
_CACHE_SCHEMA = 3  # 3: no REQUIRE_USER_ALLOCATION, whose plans crash TensorRT-RTX 1.7.1
_DIGEST_BYTES = 32
_WRITABLE_BY_OTHERS = 0o022
_PRIVATE = 0o600


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
    return Path(platformdirs.user_cache_dir("vitcx")) / "plans"


def get_or_build(key: PlanKey, build: Callable[[], bytes], directory: Path | None = None) -> bytes:
    """The plan of `key`, from the cache where it is there and intact, else built and kept.

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
    if not _prepare(folder):
        return build()
    name = key.digest()
    kept = _read(folder, name)
    if kept is not None:
        return kept
    with _locked(folder / f"{name}.lock"):
        kept = _read(folder, name)  # whoever held the lock may have built it
        if kept is not None:
            return kept
        made = build()
        _write(folder, name, made, key)
    return made


def find(key: PlanKey, directory: Path | None = None) -> bytes | None:
    """The plan of `key` if it is in the cache and intact."""
    folder = directory or cache_directory()
    return _read(folder, key.digest()) if folder.is_dir() and _is_ours(folder) else None


def keep(key: PlanKey, plan: bytes, directory: Path | None = None) -> None:
    """Put a plan that is at hand into the cache; `OSError` if that cannot be done."""
    folder = directory or cache_directory()
    if not _prepare(folder):
        raise OSError(f"the cache '{folder}' cannot be used; the log says why")
    _store(folder, key.digest(), plan, key)


def drop(key: PlanKey, directory: Path | None = None) -> None:
    """Take the plan of `key`, and its kernels, out of the cache, if they can be taken."""
    folder, name = directory or cache_directory(), key.digest()
    # The note first: a plan without one does not count.
    for path in (
        folder / f"{name}.json",
        folder / f"{name}.plan",
        *folder.glob(f"{name}.*.kernels"),
    ):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the plan cache %s cannot be written: %s", folder, error)


def read_checked(path: Path, what: str) -> bytes:
    """A file of `write_checked`; b"" where there is none or it is not the one that was written."""
    try:
        written = path.read_bytes()
    except OSError:
        return b""
    digest, content = written[:_DIGEST_BYTES], written[_DIGEST_BYTES:]
    if not _is_ours(path) or hashlib.sha256(content).digest() != digest:
        log.warning("the %s %s is damaged or not yours: starting a new one", what, path)
        return b""
    return content


def write_checked(path: Path, content: bytes, what: str) -> None:
    """Keep some bytes behind their digest. That they cannot be written is no error."""
    try:
        with replacing(path, _PRIVATE) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
    except OSError as error:
        log.warning("the %s %s cannot be written: %s", what, path, error)


def _prepare(folder: Path) -> bool:
    """Make the cache's folder; False, with a warning, if plans cannot be trusted to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        log.warning("the plan cache %s cannot be made, nothing will be kept: %s", folder, error)
        return False
    if not _is_ours(folder):
        log.warning(
            "the plan cache %s belongs to another user or others can write to it: a plan is code, "
            "so none is read from there or kept; run  chmod go-w %s",
            folder,
            folder,
        )
        return False
    return True


def _is_ours(path: Path) -> bool:
    """Whether the user owns it and no other can write to it. Windows has no such modes."""
    if os.name != "posix":
        return True
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & _WRITABLE_BY_OTHERS


def _read(folder: Path, name: str) -> bytes | None:
    """The plan `name` if it has the digest that lies beside it, else None."""
    path = folder / f"{name}.plan"
    try:
        note = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        plan = path.read_bytes()
        intact = _is_ours(path) and hashlib.sha256(plan).hexdigest() == note["sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("the plan %s cannot be read, building it again: %s", path, error)
        return None
    if not intact:
        log.warning("the plan %s is not the file that was written: building it again", path)
        return None
    return plan


def _write(folder: Path, name: str, plan: bytes, key: PlanKey) -> None:
    try:
        _store(folder, name, plan, key)
    except OSError as error:
        log.warning(
            "the plan cache %s cannot be written, the next start builds again: %s", folder, error
        )


def _store(folder: Path, name: str, plan: bytes, key: PlanKey) -> None:
    """Write the plan, then the note beside it: until both are there, they do not match."""
    note = {"sha256": hashlib.sha256(plan).hexdigest(), "key": dataclasses.asdict(key)}
    with replacing(folder / f"{name}.plan", _PRIVATE) as temporary:
        temporary.write_bytes(plan)
    with replacing(folder / f"{name}.json", _PRIVATE) as temporary:
        temporary.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file lock `path`; without it, and with a warning, where locks cannot be had."""
    try:
        import filelock
    except ImportError:
        raise MissingExtraError("the plan cache", "filelock", "rtx") from None
    lock = filelock.FileLock(path, mode=_PRIVATE)
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
