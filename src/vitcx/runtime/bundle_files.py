"""The files of a bundle, which may come from anybody: read with bounds, and only regular files."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from vitcx.kernels.errors import first_line
from vitcx.runtime.digests import sha256_of
from vitcx.runtime.errors import BundleError
from vitcx.runtime.onnx_files import external_files

# A million classes with names of 30 letters.
MAX_MANIFEST_BYTES = 32 << 20


def read_text(path: Path, most: int = MAX_MANIFEST_BYTES) -> str:
    """The text of a file of at most so many bytes.

    Raises
    ------
    FileNotFoundError
        There is none.
    BundleError
        It is no regular file, too large, not UTF-8, or cannot be read.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BundleError(f"'{path}' is not a regular file: export the model again")
            content = file.read(most + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BundleError(f"cannot read '{path}': {first_line(error)}") from None
    if len(content) > most:
        raise BundleError(f"'{path}' has more than {most} bytes: it is not a bundle's manifest")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"cannot read '{path}': {error}") from None


def _open_at_once(path: str, flags: int) -> int:
    """Opens a FIFO that nobody writes to as well, where others would wait for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Check a bundle's files against their digests, and that its graphs need no others.

    Parameters
    ----------
    folder : of the bundle.
    files : SHA-256 by file name.

    Raises
    ------
    BundleError
        Names the file that is missing, altered, or needed by a graph and without a digest.
    """
    for name, digest in files.items():
        path = folder / name
        try:
            if not path.is_file():  # neither are FIFOs and devices
                raise BundleError(f"the bundle '{folder}' lacks the file '{name}': export it again")
            found = sha256_of(path)
        except OSError as error:
            raise BundleError(f"cannot read '{path}': {first_line(error)}") from None
        if found != digest:
            raise BundleError(
                f"'{path}' is not the file that was exported (its SHA-256 differs): export it again"
            )
    for name in files:
        if not name.endswith(".onnx"):
            continue
        if unlisted := sorted(external_files(folder / name) - files.keys()):
            raise BundleError(
                f"'{folder / name}' keeps weights in {unlisted[0]!r}, which the manifest does not "
                "list: export the model again"
            )
