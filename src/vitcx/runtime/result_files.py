"""The files of an explanation in a folder: what they are called, and what they may replace.

A result is ``STEM.png`` (overlay of the first target), ``STEM.CLASS_INDEX.png`` (of the others),
``STEM.figure.png`` (if wanted), ``STEM.npz`` (arrays) and ``STEM.json``. The JSON says which
picture the result is of (``image``, and a digest) and lists its files.

A result replaces an earlier one of the same picture and nothing else: a file that the JSON beside
it does not list, or lists as another picture's, is not touched. Programs that write to one folder
at the same time take turns, so that none takes a name that another is about to write.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitcx.runtime.digests import replacing, sha256_of
from vitcx.runtime.errors import InputError
from vitcx.runtime.folder_lock import FolderLock
from vitcx.runtime.json_objects import read_json
from vitcx.runtime.pictures.overlay import drawing

# Bytes of a file name that a stem leaves free: for "_2", ".figure.png" and a temporary name.
_NAME_ROOM = 48
_LOCK_NAME = "_results.lock"
_MOST_NAMES = 100_000  # tries before giving up
_STRIP_ROWS = 256  # of a picture that is digested, so that it is not copied as a whole
# Of a summary: one that is larger was not written here.
_MOST_SUMMARY_BYTES = 16 << 20


class Result(Protocol):
    """What is asked of an `Explanation` here."""

    @property
    def targets(self) -> tuple[int, ...]: ...
    @property
    def original(self) -> Image.Image: ...
    def overlay(self, i: int = 0, *, caption: bool = False) -> Image.Image: ...
    def figure(self) -> Any: ...
    def arrays(self) -> dict[str, NDArray[Any]]: ...
    def summary(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class SavedResult:
    """What was written.

    Attributes
    ----------
    files : the paths by kind: ``overlay``, ``overlay_CLASS_INDEX``, ``figure``, ``arrays``,
        ``summary``.
    summary : the content of the JSON file.
    """

    files: dict[str, Path]
    summary: dict[str, Any]


class ResultFolder:
    """A folder that a run writes results to. A stem that is taken gets a number: ``STEM_2``.

    Parameters
    ----------
    path : made when the first result is written.
    inputs : the pictures of the run, none of which is replaced.
    """

    def __init__(self, path: str | Path, inputs: Iterable[str | Path] = ()) -> None:
        self.path = Path(path)
        self._inputs = {place for name in inputs if (place := _place_of(Path(name)))}
        self._written: set[Path] = set()

    def save(
        self, result: Result, stem: str, image: str | Path | None = None, *, figure: bool
    ) -> SavedResult:
        """Write a result under `stem`, or under ``STEM_2``, ... where that is taken.

        Parameters
        ----------
        result : what to write.
        stem : of the file names; one that is too long for a file name is shortened.
        image : where the picture came from.
        figure : whether to draw ``STEM.figure.png``.
        """
        identity = _identity(result, image)
        with _turn_in(self.path):
            for candidate in _stems(_short(stem)):
                names = _names(result, candidate, figure)
                if not _is_taken(self.path, names, identity, self._is_kept):
                    break
            else:
                raise InputError(f"'{self.path}' has too many results called '{stem}'")
            saved = _write(result, self.path, names, image, identity)
        self._written.update(saved.files.values())
        return saved

    def _is_kept(self, path: Path) -> bool:
        return path in self._written or _place_of(path) in self._inputs


def save_result(
    result: Result,
    folder: str | Path,
    stem: str,
    image: str | Path | None = None,
    *,
    figure: bool = False,
) -> SavedResult:
    """Write a result under `stem`, and nowhere else.

    Raises
    ------
    InputError
        If a file of that name is there which is no result of the same picture.
    """
    folder, identity = Path(folder), _identity(result, image)
    names = _names(result, _short(stem), figure)
    with _turn_in(folder):
        if taken := _is_taken(folder, names, identity, lambda path: False):
            raise InputError(
                f"'{taken}' is there already and is not of this picture: choose another name or "
                "folder"
            )
        return _write(result, folder, names, image, identity)


def _turn_in(folder: Path) -> FolderLock:
    """Held from the choice of a name until the files of that name are there."""
    folder.mkdir(parents=True, exist_ok=True)
    return FolderLock(folder, _LOCK_NAME, None)


def _names(result: Result, stem: str, figure: bool) -> dict[str, str]:
    """File names by kind, in the order in which they are written: the JSON last."""
    names = {"overlay": f"{stem}.png"}
    names |= {f"overlay_{index}": f"{stem}.{index}.png" for index in result.targets[1:]}
    if figure:
        names["figure"] = f"{stem}.figure.png"
    return names | {"arrays": f"{stem}.npz", "summary": f"{stem}.json"}


def _stems(stem: str) -> Iterator[str]:
    yield stem
    yield from (f"{stem}_{number}" for number in range(2, _MOST_NAMES))


def _short(stem: str) -> str:
    """The stem, cut where a file name could not hold it; with a digest, so that two stay two."""
    if not stem or Path(stem).name != stem or "\0" in stem:
        raise InputError(f"{stem!r} is not a file name: give a name without folders")
    encoded = os.fsencode(stem)
    most = 255 - _NAME_ROOM
    if len(encoded) <= most:
        return stem
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    # A character that the cut splits goes.
    kept = encoded[: most - len(digest) - 1].decode("utf-8", "ignore")
    return f"{kept}~{digest}"


def _identity(result: Result, image: str | Path | None) -> dict[str, str]:
    """What tells the picture from others: the digest of its file, or else of its pixels."""
    if image is not None and Path(image).is_file():
        return {"image_sha256": sha256_of(Path(image))}
    return {"pixels_sha256": _pixels_digest(result.original)}


def _pixels_digest(picture: Image.Image) -> str:
    digest = hashlib.sha256(f"{picture.mode} {picture.width}x{picture.height}".encode())
    for top in range(0, picture.height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, picture.height)
        digest.update(picture.crop((0, top, picture.width, bottom)).tobytes())
    return digest.hexdigest()


def _is_taken(
    folder: Path, names: dict[str, str], identity: dict[str, str], kept: Callable[[Path], bool]
) -> Path | None:
    """The first file that is there and may not be replaced; None if all of them may be written."""
    present = [path for name in names.values() if os.path.lexists(path := folder / name)]
    if not present:
        return None
    owned = _owned(folder / names["summary"], identity)
    return next((path for path in present if path.name not in owned or kept(path)), None)


def _owned(summary: Path, identity: dict[str, str]) -> set[str]:
    """Names of the files that belong to an earlier result of the same picture."""
    found = _read_summary(summary)
    return _files_in(found) if identity.items() <= found.items() else set()


def is_result(path: Path) -> bool:
    """Whether a picture is an overlay or a figure of an earlier result, by the JSON beside it."""
    stem = path.stem
    stems = {stem, stem.rpartition(".")[0]} - {""}
    return any(
        path.name in _files_in(_read_summary(path.with_name(f"{one}.json"))) for one in stems
    )


def _files_in(summary: dict[str, Any]) -> set[str]:
    files = summary.get("files")
    return set(map(str, files.values())) if isinstance(files, dict) else set()


def _read_summary(path: Path) -> dict[str, Any]:
    """The content of a summary; empty where the file is none."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_SUMMARY_BYTES:
            return {}
        found = read_json(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _place_of(path: Path) -> tuple[int, int] | None:
    """What two names of one file share; None where there is no file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _write(
    result: Result,
    folder: Path,
    names: dict[str, str],
    image: str | Path | None,
    identity: dict[str, str],
) -> SavedResult:
    """Write every file, or leave none that was not there before."""
    files = {kind: folder / name for kind, name in names.items()}
    added = [path for path in files.values() if not os.path.lexists(path)]
    summary = {
        "image": None if image is None else str(image),
        **identity,
        **result.summary(),
        "files": names,
    }
    try:
        _write_overlays(result, files)
        if "figure" in files:
            drawing = result.figure()
            with replacing(files["figure"]) as path:
                drawing.savefig(path, dpi=110)
        with replacing(files["arrays"]) as path, path.open("wb") as file:
            np.savez_compressed(file, **result.arrays())  # type: ignore[arg-type]
        with replacing(files["summary"]) as path:
            text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
            # A path may hold bytes that are no UTF-8: JSON has escapes for them.
            path.write_bytes(text.encode("utf-8", "backslashreplace"))
    except BaseException:
        for path in added:
            with contextlib.suppress(OSError):
                path.unlink()
        raise
    return SavedResult(files, summary)


def _write_overlays(result: Result, files: dict[str, Path]) -> None:
    for i, index in enumerate(result.targets):
        with replacing(files["overlay" if i == 0 else f"overlay_{index}"]) as path, drawing():
            result.overlay(i, caption=True).save(path)
