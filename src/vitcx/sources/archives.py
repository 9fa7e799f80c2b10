"""WebDataset shards: tar archives of pictures, each with its class beside it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from vitcx.runtime.errors import InputError
from vitcx.runtime.plain_files import open_plain
from vitcx.runtime.targets import read_target
from vitcx.sources.folders import is_picture
from vitcx.sources.items import Item

# Of a picture in a tar archive, which is read as a whole: an archive may claim any size.
MOST_MEMBER_BYTES = 256 << 20
_MOST_LABEL_BYTES = 1000


def items_of_archive(path: Path) -> Iterator[Item]:
    """Samples of a WebDataset shard: files that share a name up to the first dot.

    Nothing is extracted: a picture is a place in the archive, and its name is only a name.
    """
    try:
        with open_plain(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            key, sample = "", dict[str, tarfile.TarInfo]()
            for member in archive:
                if member.size < 0:  # the next header would lie before this one, for ever
                    raise tarfile.ReadError("a member of negative size")
                if not (member.isfile() or member.issym() or member.islnk()):
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                member_key = f"{folder}/{stem}"
                if member_key != key:
                    yield from _sample(archive, path, sample)
                    key, sample = member_key, {}
                sample[extension.lower()] = member
            yield from _sample(archive, path, sample)
            _check_end(archive)
    # What tarfile raises beside its own errors comes of numbers and names that no tar writer makes.
    except (
        tarfile.TarError,
        EOFError,
        OSError,
        ValueError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:
        why = str(error) or type(error).__name__
        raise InputError(
            f"'{path}' is not an uncompressed tar archive, or it is damaged ({why})"
        ) from None


def _check_end(archive: tarfile.TarFile) -> None:
    """Refuse an archive that does not end in a block of zeros.

    tarfile takes a damaged header after the first for the end, and an archive that was cut short
    between two members too: what comes after would be lost without a word.
    """
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(
            f"at byte {archive.offset} there is neither a member nor the archive's end"
        )


def _sample(
    archive: tarfile.TarFile, path: Path, sample: dict[str, tarfile.TarInfo]
) -> Iterator[Item]:
    picture = next((m for e, m in sample.items() if is_picture(f"x.{e}")), None)
    if picture is None:
        return
    target: int | str | None = None
    label = sample.get("cls")
    if label and _whole(label) and (file := archive.extractfile(label)) is not None:
        target = read_target(file.read(_MOST_LABEL_BYTES).decode("utf-8", "replace"))
    problem = ""
    if not _whole(picture):
        problem = "is a link or a sparse file in the archive: put the picture itself there"
    elif picture.size > MOST_MEMBER_BYTES:
        problem = f"has {picture.size} bytes, more than {MOST_MEMBER_BYTES}"
    place = (str(path), picture.offset_data, picture.size)
    name = picture.name
    yield Item(f"{path}/{name}", target, None, place, problem=problem, name=name)


def _whole(member: tarfile.TarInfo) -> bool:
    """Whether the member's bytes lie in the archive in one piece, as they are."""
    return member.isfile() and not member.issparse()
