"""NVRTC without a GPU, and the cache of what it makes."""

from __future__ import annotations

import pytest

from vitcx.kernels.errors import DeviceError
from vitcx.kernels.gpu import compiler
from vitcx.kernels.gpu.compiler import UNITS, cache_key, cubin, source_text

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@pytest.fixture
def compiled(monkeypatch):
    """A compiler that counts its calls."""
    calls = []

    def compile_(unit, source, arch):
        calls.append((unit, arch))
        return f"{unit} {arch} {len(calls)}".encode()

    monkeypatch.setattr(compiler, "_compile", compile_)
    monkeypatch.setattr(compiler, "compiler_version", lambda: "nvrtc 0.0")
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
def test_nvrtc_compiles_every_unit(unit, tmp_path):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    try:
        compiler.compiler_version()
    except DeviceError as error:
        pytest.skip(str(error))
    for arch in ARCHITECTURES:
        code = cubin(unit, arch, tmp_path)
        assert code[:4] == b"\x7fELF"
        assert f"vitcx_{unit if unit == 'blend' else ''}".encode() in code


def test_a_source_that_does_not_compile(tmp_path, monkeypatch):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    monkeypatch.setattr(compiler, "source_text", lambda unit: "not C++")
    try:
        compiler.compiler_version()
    except DeviceError as error:
        pytest.skip(str(error))
    with pytest.raises(DeviceError, match="does not compile 'blend' for sm_90"):
        cubin("blend", "sm_90", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("unit", UNITS)
def test_the_source_is_one_text(unit):
    text = source_text(unit)
    assert '#include "' not in text
    assert text.count("struct vitcx_perturbation {") == 1


def test_second_use_reads_the_file(compiled, tmp_path):
    first = cubin("blend", "sm_90", tmp_path)
    assert cubin("blend", "sm_90", tmp_path) == first
    assert compiled == [("blend", "sm_90")]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 100])
def test_a_damaged_file_is_compiled_again(damage, compiled, tmp_path):
    cubin("blend", "sm_90", tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    assert cubin("blend", "sm_90", tmp_path) == b"blend sm_90 2"
    assert cubin("blend", "sm_90", tmp_path) == b"blend sm_90 2"
    assert len(compiled) == 2


def test_a_cache_that_cannot_be_written_is_no_error(compiled, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert cubin("blend", "sm_90", blocked) == b"blend sm_90 1"
    assert "no compiled kernel can be kept" in caplog.text


def test_the_key_holds_everything(monkeypatch):
    base = cache_key("source", "sm_90", "nvrtc 13.0")
    keys = {
        base,
        cache_key("source ", "sm_90", "nvrtc 13.0"),
        cache_key("source", "sm_80", "nvrtc 13.0"),
        cache_key("source", "sm_90", "nvrtc 13.1"),
    }
    monkeypatch.setattr(compiler, "_OPTIONS", {"std": "c++20"})
    keys.add(cache_key("source", "sm_90", "nvrtc 13.0"))
    monkeypatch.setattr(compiler, "_CACHE_SCHEMA", 99)
    keys.add(cache_key("source", "sm_90", "nvrtc 13.0"))
    assert len(keys) == 6
