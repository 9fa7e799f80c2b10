"""CSV and Parquet lists: the pictures, classes and boxes they name, or one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vitcx.runtime.errors import InputError
from vitcx.runtime.targets import resolve_targets
from vitcx.sources.items import Item
from vitcx.sources.listing import list_items

NAMES = ("ant", "bee", "cat", "dog")


def targets(items: list[Item]) -> list[object]:
    """The classes that the items' targets stand for."""
    scores = np.zeros(len(NAMES), np.float32)
    return [
        None if item.target is None else resolve_targets(item.target, scores, NAMES)[0]
        for item in items
    ]


@pytest.fixture
def pq() -> object:
    return pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def pa() -> object:
    return pytest.importorskip("pyarrow")


def test_a_csv_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("path,target,x0,y0,x1,y1\na.png,cat,1,2,3,4\nb/c.png,3,,,,\n", "utf-8-sig")
    first, second = list_items(path)
    assert (first.path, first.name) == (str(tmp_path / "a.png"), "a.png")
    assert (first.box, second.box) == ((1, 2, 3, 4), None)
    assert second.name == "b/c.png"
    assert targets([first, second]) == [2, 3]


def test_a_csv_list_in_which_targets_are_missing_has_indices_with_a_point(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(",path,target\n0,a.png,3.0\n1,b.png,\n2,c.png,0.0\n")  # as pandas writes it
    assert targets(list_items(path)) == [3, None, 0]
    path.write_text("path,target\na.png,1.5\nb.png,002\nc.png,cat\n")
    assert [item.target for item in list_items(path)] == ["1.5", "002", "cat"]


def test_a_parquet_list_in_which_targets_are_missing_or_are_no_classes(
    tmp_path: Path, pa: object, pq: object
) -> None:
    path = tmp_path / "list.parquet"
    paths = ["a.png", "b.png", "c.png"]
    # A column of whole numbers with a gap is floats in pandas.
    pq.write_table(pa.table({"path": paths, "target": [3.0, None, 0.0]}), path)
    assert targets(list_items(path)) == [3, None, 0]
    for wrong in (b"cat", 1.5, True, {"a": 1}, [1]):
        pq.write_table(pa.table({"path": paths, "target": [wrong] * 3}), path)
        with pytest.raises(InputError, match=r"row 1 of .*, column target: .* is neither"):
            list_items(path)


def test_a_parquet_list_whose_paths_are_no_text_is_refused(
    tmp_path: Path, pa: object, pq: object
) -> None:
    path = tmp_path / "list.parquet"
    for wrong in ({"bytes": b"x", "path": "a.png"}, b"a.png", 7, ["a.png"], True):
        pq.write_table(pa.table({"image": [wrong]}), path)
        with pytest.raises(InputError, match=r"row 1 of .*, column image: .*: give the path"):
            list_items(path)
    pq.write_table(pa.table({"path": ["a.png", None]}), path)
    with pytest.raises(InputError, match=r"row 2 of .* has no path"):
        list_items(path)
    pq.write_table(pa.table({"picture": ["a.png"]}), path)
    with pytest.raises(InputError, match="has the columns picture: one of path"):
        list_items(path)
    pq.write_table(pa.table({"path": pa.array([], pa.string())}), path)
    with pytest.raises(InputError, match="is empty"):
        list_items(path)


def test_of_a_parquet_list_only_the_columns_that_matter_are_read(
    tmp_path: Path, pa: object, pq: object
) -> None:
    """Beside the paths such tables hold pictures, or dates for which Python has no type."""
    path = tmp_path / "list.parquet"
    far = pa.array([2**60], pa.timestamp("us"))
    pq.write_table(pa.table({"path": ["a.png"], "taken": far}), path)
    assert [item.name for item in list_items(path)] == ["a.png"]
    pq.write_table(pa.table({"path": far}), path)
    with pytest.raises(InputError, match=r"Parquet file that can be read|row 1"):
        list_items(path)


def test_damaged_parquet_lists_end_in_a_sentence(tmp_path: Path, pa: object, pq: object) -> None:
    path = tmp_path / "list.parquet"
    table = pa.table({"path": [f"{i}.png" for i in range(50)], "target": list(range(50))})
    pq.write_table(table, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 4):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            list_items(path)
        except InputError:
            refused += 1
    assert refused


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "where,target\nx.png,1\n", "one of path"),
        ("b.csv", "path\n", "empty"),
        ("c.tar", "not a tar", "tar archive"),
        ("d.parquet", "no", "Parquet"),
        ("e.doc", "no", "neither a picture"),
        ("f.csv", "path,target\n,1\n", "row 1 of .* has no path"),
    ],
)
def test_bad_sources_are_said(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        list_items(str(tmp_path / name))


def test_a_source_that_is_no_name(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path / "none", "matches anything"),
        ("a\0b", "not a file name|matches"),
    ):
        with pytest.raises(InputError, match=message):
            list_items(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.tar", "a.png"])
def test_a_pipe_in_the_place_of_a_list_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=r"matches anything|is a pipe"):
        list_items(tmp_path / name)
