"""WebDataset shards, hostile or damaged: nothing is extracted, followed or lost in silence."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny_bundle import random_picture, write_tiny_bundle
from vitcx.cli import main
from vitcx.runtime.errors import InputError
from vitcx.sources import archives
from vitcx.sources.listing import list_items

BLOCK = tarfile.BLOCKSIZE


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random_picture(seed)).save(buffer, "png")
    return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes, **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(data))


def write_three(path: Path) -> bytes:
    """Three pictures in a row; the archive's bytes."""
    with tarfile.open(path, "w") as archive:
        for i in range(3):
            add(archive, f"{i}.png", png(i))
    return path.read_bytes()


def explain(source: Path, folder: Path) -> list[dict]:
    """The rows of a job on the tiny bundle."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_tiny_bundle(folder / "bundle")
    words = ["dataset", str(source), "--out", str(folder / "out"), "--overlays"]
    words += ["--bundle", str(folder / "bundle"), "--engine", "onnxruntime", "--threads", "1"]
    assert main(words) in (0, 2)
    return parquet.read_table(folder / "out").to_pylist()


def test_names_that_lead_elsewhere_are_only_names(tmp_path: Path) -> None:
    place = tmp_path / "in" / "side"
    place.mkdir(parents=True)
    names = [
        "/etc/a.png",
        "../../b.png",
        f"{'long' * 70}.png",
        "line\nbreak.png",
        "not utf\udcff.png",
    ]
    with tarfile.open(place / "s.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for i, name in enumerate(names):
            add(archive, name, png(i))
    rows = explain(place / "s.tar", tmp_path / "work")
    assert [row["error"] for row in rows] == [None] * len(names)
    assert rows[4]["path"].endswith(r"not utf\udcff.png")
    work = tmp_path / "work"
    overlays = [path for path in work.rglob("*.png") if path.parent == work / "out" / "_overlays"]
    assert len(overlays) == len(list(work.rglob("*.png"))) == len(names)
    beside = {path for path in tmp_path.rglob("*") if not path.is_relative_to(work)}
    assert beside == {place.parent, place, place / "s.tar"}


def test_links_devices_and_sparse_members_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(9))
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        add(archive, "0.png", png())
        add(archive, "1.png", b"", type=tarfile.SYMTYPE, linkname=str(secret))
        add(archive, "2.png", b"", type=tarfile.LNKTYPE, linkname="0.png")
        add(archive, "3.png", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        add(archive, "4.png", b"", type=tarfile.FIFOTYPE)
        add(archive, "5.png", b"", type=tarfile.DIRTYPE)
        sparse = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "99", "GNU.sparse.numblocks": "1"}
        add(archive, "6.png", png(6), pax_headers=sparse)
        add(archive, "7.cls", b"", type=tarfile.SYMTYPE, linkname=str(secret))
        add(archive, "7.png", png(7))
    rows = explain(tmp_path / "s.tar", tmp_path / "work")
    assert [Path(row["path"]).name for row in rows] == ["0.png", "1.png", "2.png", "6.png", "7.png"]
    said = [row["error"] or "" for row in rows]
    assert ["link or a sparse" in text for text in said] == [False, True, True, True, False]
    assert said[0] == said[4] == ""


def test_a_member_is_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBER_BYTES", len(png()) + 100)
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        add(archive, "0.png", png() + bytes(101))
        add(archive, "1.png", png() + bytes(100))
    large, good = list_items(str(tmp_path / "s.tar"))
    with pytest.raises(InputError, match=r"0\.png' has \d+ bytes, more than"):
        large.picture().read()
    assert good.picture().read().startswith(png())


def test_a_picture_that_decodes_to_a_flood_is_a_row_with_an_error(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        ends = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + ends

    header = (60_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6)))
    )
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        add(archive, "0.png", bomb)
        add(archive, "1.png", png())
    rows = explain(tmp_path / "s.tar", tmp_path / "work")
    assert "pixels" in rows[0]["error"]
    assert rows[1]["error"] is None


def with_size(field: bytes) -> Callable[[bytes], bytes]:
    """Another size in the second member's header, with a checksum that fits."""

    def change(data: bytes) -> bytes:
        at = data.index(b"1.png")
        header = bytearray(data[at : at + BLOCK])
        header[124:136] = field
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return data[:at] + header + data[at + BLOCK :]

    return change


def long_names(data: bytes) -> bytes:
    """A thousand headers, each of which says that the next one's name is long."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 5
    header = info.tobuf(tarfile.GNU_FORMAT)
    return (header + b"a.png".ljust(BLOCK, b"\0")) * 3000 + data


# How to damage an archive of three pictures, each of less than a block.
DAMAGE = {
    "cut in a picture": lambda data: data[: data.index(b"2.png") + BLOCK + 10],
    "cut in a header": lambda data: data[: data.index(b"2.png") + 100],
    "cut between members": lambda data: data[: data.index(b"2.png")],
    "a header overwritten": lambda data: data.replace(b"1.png\0", b"x.png\0"),
    "random bytes": lambda data: b"\x93" * 5000,
    "compressed": lambda data: zlib.compress(data, wbits=31),
    "empty": lambda data: b"",
    "a size of 8 GiB": with_size(b"77777777777\0"),
    "a size of 2^80": with_size(b"\x80" + b"\1" + bytes(10)),
    "a negative size": with_size(b"\xff" * 10 + b"\xfc\0"),
    "long names without end": long_names,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_archive_is_refused_in_a_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(DAMAGE[damage](write_three(path)))
    with pytest.raises(InputError, match=r"s\.tar' is not an uncompressed tar archive, or it is"):
        list_items(str(path))


def test_an_archive_that_shrinks_after_it_was_listed_costs_only_its_pictures(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.tar"
    data = write_three(path)
    items = list_items(str(path))
    os.truncate(path, data.index(b"1.png"))
    assert [len(item.picture().read()) > 0 for item in items] == [True, False, False]
