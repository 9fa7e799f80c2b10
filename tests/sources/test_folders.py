"""Folders and patterns: each picture once, nothing hidden, nothing passed over in silence."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from vitcx.runtime.errors import InputError
from vitcx.runtime.pictures.formats import PICTURE_SUFFIXES
from vitcx.sources import folders
from vitcx.sources.listing import list_all, list_items

links = pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(source: object, **options: object) -> list[str]:
    return [item.name for item in list_items(str(source), **options)]


def test_a_folder_holds_every_format_that_is_read(tmp_path: Path) -> None:
    make(tmp_path, *(f"a{suffix}" for suffix in PICTURE_SUFFIXES), "b.JPG", "c.txt", "d.ico", "e")
    assert sorted(names(tmp_path)) == sorted([*(f"a{s}" for s in PICTURE_SUFFIXES), "b.JPG"])


def test_hidden_files_and_folders_are_passed_over_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hidden = (".ipynb_checkpoints/x-checkpoint.png", "._x.png", "a/._y.png")
    make(tmp_path, "x.png", "a/y.png", *hidden, ".DS_Store")
    assert names(tmp_path) == ["a/y.png", "x.png"]
    (line,) = caplog.messages
    assert "passed over hidden files and folders (3): " in line
    assert ".ipynb_checkpoints" in line
    for pattern, expected in (("*.png", ["x.png"]), ("**/*.png", ["y.png", "x.png"])):
        assert names(tmp_path / pattern) == expected
    assert names(tmp_path / ".ipynb*" / "*.png") == ["x-checkpoint.png"]


@links
def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "store/cat/1.png", "set/0.png")
    (tmp_path / "set" / "cat").symlink_to("../store/cat")
    assert names(tmp_path / "set") == ["0.png", "cat/1.png"]
    assert len(names(tmp_path / "set" / "**" / "*.png")) == 2
    assert names(tmp_path / "set" / "cat" / "*.png") == ["1.png"]


@links
@pytest.mark.timeout(60)
def test_links_that_lead_back_end_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "s/0.png", "s/a/1.png", "s/z/2.png")
    for i in range(3):
        (tmp_path / "s" / "a" / f"loop{i}").symlink_to("..")
    (tmp_path / "s" / "b").symlink_to("z")  # met before what it leads to
    (tmp_path / "s" / "self.png").symlink_to("self.png")
    assert names(tmp_path / "s") == ["0.png", "a/1.png", "z/2.png"]
    assert any("links to folders that are searched anyway (4)" in line for line in caplog.messages)
    for pattern in ("**/*.png", "**"):
        found = [item.path for item in list_items(str(tmp_path / "s" / pattern))]
        assert len({os.path.realpath(path) for path in found}) == len(found) == 3


@links
def test_a_link_to_a_hidden_folder_is_the_only_way_there(tmp_path: Path) -> None:
    make(tmp_path, ".store/cat/1.png")
    (tmp_path / "cat").symlink_to(".store/cat")
    assert names(tmp_path) == ["cat/1.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_pipes_and_broken_links_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, "0.png")
    os.mkfifo(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to("nowhere")
    assert names(tmp_path) == ["0.png"]
    assert "passed over pipes, devices and broken links (2): " in caplog.text
    assert names(tmp_path / "*.png") == ["0.png"]


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in where the tests run as root, who may read everything."""
    make(tmp_path, "a/0.png", "b/1.png")
    real = os.scandir
    if os.geteuid() == 0 if hasattr(os, "geteuid") else True:

        def refused(folder: str) -> object:
            if Path(folder) == tmp_path / "b":
                raise PermissionError(13, "Permission denied", folder)
            return real(folder)

        monkeypatch.setattr(folders.os, "scandir", refused)
    else:
        (tmp_path / "b").chmod(0)
    try:
        assert names(tmp_path) == ["a/0.png"]
        assert f"passed over folders that cannot be read (1): '{tmp_path / 'b'}'" in caplog.text
        with pytest.raises(InputError, match=r"cannot be read .Permission denied"):
            list_items(tmp_path / "b")
    finally:
        (tmp_path / "b").chmod(stat.S_IRWXU)


def test_patterns_match_as_shells_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/0.png", "a/b/1.png", "c/2.png", "3.png", "a/4.txt", "a[b]/5.png")
    monkeypatch.chdir(tmp_path)

    def paths(pattern: str) -> list[str]:
        return [Path(item.path).as_posix() for item in list_items(pattern)]

    assert paths("*.png") == ["3.png"]
    assert paths("*/*.png") == ["a/0.png", "a[b]/5.png", "c/2.png"]
    assert paths("a/**/*.png") == ["a/0.png", "a/b/1.png"]
    assert paths("**/[12].png") == ["a/b/1.png", "c/2.png"]
    assert paths("a/*") == ["a/0.png"]
    assert paths("[ac]/?.png") == ["a/0.png", "c/2.png"]
    assert paths("a/b/1.png") == ["a/b/1.png"]
    assert paths("a[b]") == ["a[b]/5.png"]  # a name first
    for nothing in ("x*", "none/*.png", "none.png"):
        with pytest.raises(InputError, match="matches anything"):
            list_items(nothing)
    with pytest.raises(InputError, match="holds no pictures"):
        list_items("a/*.txt")


def test_many_sources_one_after_the_other(tmp_path: Path) -> None:
    make(tmp_path, "a/0.png", "b.png", "c.odd")
    (tmp_path / "l.csv").write_text("path,target\nb.png,cat\n")
    items = list_all([tmp_path / "l.csv", tmp_path / "a", tmp_path / "c.odd", tmp_path / "no.png"])
    assert [item.name for item in items] == ["b.png", "0.png", "c.odd", "no.png"]
    assert [item.target for item in items] == ["cat", None, None, None]
