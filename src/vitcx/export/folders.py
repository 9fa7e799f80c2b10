"""The folder that a bundle is made in: it appears whole, or what was there stays."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import MANIFEST_NAME


def check_target(target: Path, force: bool) -> None:
    """Refuse a folder that holds something, unless it is a bundle and `force` is set."""
    if target.is_dir():
        occupied = any(target.iterdir())
        if occupied and not force:
            raise InputError(f"'{target}' is not empty: choose another folder, or give --force")
        if occupied and not (target / MANIFEST_NAME).is_file():
            raise InputError(f"'{target}' is not empty and no bundle: choose another folder")
    elif target.exists() or target.is_symlink():
        raise InputError(f"'{target}' is a file: choose another folder")


@contextlib.contextmanager
def folder_in_place_of(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target` that takes its place on success and is removed if not.

    What was at `target` is there until the new folder is complete.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        folder = holder / "new"
        folder.mkdir()  # not the holder itself, which mkdtemp makes private
        yield folder
        if target.exists():
            target.replace(holder / "old")
        folder.replace(target)
    except BaseException:
        # A replaced bundle goes back if its successor did not make it.
        if (holder / "old").exists() and not target.exists():
            (holder / "old").replace(target)
        raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)
