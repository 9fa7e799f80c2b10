"""Files that appear whole or not at all, with the mode they are to have from the start."""

from __future__ import annotations

import os
import stat

import pytest

from vitcx.kernels.files import replacing

posix = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_processs_umask_is_never_touched(tmp_path, monkeypatch):
    """Other threads make files meanwhile, which anybody might write while it is 0."""

    def refuse(mask):
        raise AssertionError("the umask was changed")

    monkeypatch.setattr(os, "umask", refuse)
    with replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "file.txt").read_text() == "whole"


@posix
@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_mode_that_open_would_give_it(umask, expected, tmp_path):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "file.txt") as temporary:
            assert mode_of(temporary) == expected
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "file.txt") == expected


@posix
def test_a_private_file_is_private_while_it_is_written(tmp_path):
    (tmp_path / "file.txt").touch(0o666)
    with replacing(tmp_path / "file.txt", 0o600) as temporary:
        assert mode_of(temporary) == 0o600
    assert mode_of(tmp_path / "file.txt") == 0o600


def test_two_that_write_the_same_file_do_not_share_a_part(tmp_path):
    path = tmp_path / "file.txt"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_a_name_that_is_taken_is_not_used(tmp_path, monkeypatch):
    names = iter(["taken", "taken", "free"])
    monkeypatch.setattr("vitcx.kernels.files.secrets.token_hex", lambda count: next(names))
    with replacing(tmp_path / "file.txt") as first, replacing(tmp_path / "file.txt") as second:
        assert (first.name, second.name) == (".file.taken.txt", ".file.free.txt")
