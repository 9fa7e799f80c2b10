"""Cached code is read only where nobody else can have put it."""

from __future__ import annotations

import os

import pytest

from vitcx.kernels.code_cache import read_code, write_code
from vitcx.kernels.gpu import compiler
from vitcx.runtime.engines.tensorrt.plan_cache import PlanKey, find, keep
from vitcx.runtime.engines.tensorrt.runtime_cache import RuntimeCache
from vitcx.runtime.engines.tensorrt.timing_cache import keep_timings, use_timings

CODE = b"how to run" * 100

posix = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "code.bin"


def test_what_is_written_is_read_and_is_the_users_alone(path):
    assert read_code(path, "code") is None
    assert write_code(path, CODE, "code")
    assert read_code(path, "code") == CODE
    if os.name == "posix":
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 100])
def test_a_damaged_file_is_not_read(damage, path, caplog):
    write_code(path, CODE, "code")
    path.write_bytes(damage)
    assert read_code(path, "code") is None
    assert "not the file that was written" in caplog.text


@posix
def test_a_file_that_others_can_write_is_not_read(path, caplog):
    write_code(path, CODE, "code")
    path.chmod(0o622)
    assert read_code(path, "code") is None
    assert "others can write to it" in caplog.text


@posix
def test_a_folder_that_others_can_write_is_neither_read_nor_written(path, caplog):
    write_code(path, CODE, "code")
    path.parent.chmod(0o777)
    assert read_code(path, "code") is None
    assert not write_code(path.with_name("other.bin"), CODE, "code")
    assert [file.name for file in path.parent.iterdir()] == ["code.bin"]
    assert "others can write to it" in caplog.text


@posix
def test_another_users_file_or_folder_is_not_read(path, monkeypatch):
    write_code(path, CODE, "code")
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert read_code(path, "code") is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    assert not write_code(tmp_path / "file" / "code.bin", CODE, "code")
    assert read_code(tmp_path / "file" / "code.bin", "code") is None
    assert "can be kept" in caplog.text


# --- the members: each keeps to it ----------------------------------------------------------------


class RuntimeConfig:
    """What TensorRT-RTX compiles, in its interface's words."""

    @staticmethod
    def create_runtime_cache():
        return RuntimeConfig()

    def set_runtime_cache(self, cache):
        self.cache = cache

    def deserialize(self, content):
        self.read = content
        return True

    def serialize(self):
        return b"compiled"


class BuilderConfig:
    """The calls of TensorRT's that a timing cache needs."""

    def create_timing_cache(self, content):
        self.read = content
        return self

    def set_timing_cache(self, cache, ignore_mismatch):
        return True

    def serialize(self):
        return b"timings"


def cubins(folder):
    def made():
        calls = []
        real = compiler._compile
        compiler._compile = lambda *given: calls.append(given) or b"made"
        try:
            compiler.cubin("blend", "sm_90", folder)
        finally:
            compiler._compile = real
        return not calls

    return made, made


def plans(folder):
    key = PlanKey({}, "g", "tensorrt", "1", "8.9", "gpu", "fp16", {}, {})
    return lambda: keep(key, b"plan", folder), lambda: find(key, folder) is not None


def runtime_caches(folder):
    def write():
        RuntimeCache(folder / "x.runtime-cache").keep(RuntimeConfig())

    def read():
        return hasattr(RuntimeCache(folder / "x.runtime-cache").begin(RuntimeConfig()), "read")

    return write, read


def timings(folder):
    def write():
        keep_timings(BuilderConfig(), folder / "x.timings")

    def read():
        return use_timings(BuilderConfig(), folder / "x.timings").read != b""

    return write, read


@posix
@pytest.mark.parametrize("member", [cubins, plans, runtime_caches, timings])
def test_no_cached_code_is_read_from_a_folder_or_file_that_others_can_write(
    member, tmp_path, monkeypatch
):
    monkeypatch.setattr(compiler, "compiler_version", lambda: "nvrtc 0.0")
    write, read = member(tmp_path / "cache")
    write()
    assert read()
    code = [file for file in (tmp_path / "cache").iterdir() if file.suffix != ".json"]
    for unsafe in (tmp_path / "cache", *code):
        mode = unsafe.stat().st_mode
        unsafe.chmod(mode | 0o022)
        assert not read(), unsafe
        unsafe.chmod(mode)
        write()
        assert read()
