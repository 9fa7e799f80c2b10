"""The kernels compiled for one architecture by NVRTC, kept on disk.

The source is one text: local includes are put in place, so that the cache's key, which holds a
digest of that text, covers every line that the compiler sees. No GPU is needed to compile, and no
header but ours.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path

from vitcx.kernels.code_cache import code_folder, read_code, write_code
from vitcx.kernels.errors import DeviceError, first_line
from vitcx.kernels.gpu.cuda_modules import cuda_module

SOURCE_DIRECTORY = Path(__file__).parents[1] / "cuda"
UNITS = ("blend", "masks", "linkage", "aggregate")

# Part of the key: raise it when what a file in the cache holds changes.
_CACHE_SCHEMA = 1
# Names of `ProgramOptions`. Warnings are shown by `nvcc` in the tests, errors by NVRTC here.
_OPTIONS: dict[str, str | bool] = {"std": "c++17"}
_WHAT = "compiled kernel"
_LOCAL_INCLUDE = re.compile(r'^#include "([\w.]+)"\s*$', re.MULTILINE)


def source_text(unit: str) -> str:
    """The whole source of one of `UNITS`, with each local include put in place once."""
    seen: set[str] = set()

    def expand(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        text = (SOURCE_DIRECTORY / name).read_text(encoding="utf-8")
        # launch.cuh is the launchers' alone, which NVRTC does not see.
        return _LOCAL_INCLUDE.sub(
            lambda match: "" if match[1] == "launch.cuh" else expand(match[1]), text
        )

    return expand(f"{unit}.cu")


@functools.cache
def compiler_version() -> str:
    """NVRTC's version, such as ``nvrtc 13.0``."""
    nvrtc = cuda_module("cuda.bindings.nvrtc")
    try:
        status, major, minor = nvrtc.nvrtcVersion()
    except RuntimeError as error:  # cuda-pathfinder found no library
        raise DeviceError(
            f"The GPU path needs NVRTC, NVIDIA's run-time compiler ({first_line(error)}): "
            "run  pip install nvidia-cuda-nvrtc"
        ) from error
    if int(status) != 0:
        raise DeviceError(f"NVRTC does not give its version: {status!r}")
    return f"nvrtc {major}.{minor}"


def cache_key(source: str, arch: str, compiler: str) -> str:
    """Name of a cubin in the cache: a digest of all that it depends on."""
    parts = {
        "schema": _CACHE_SCHEMA,
        "source": source,
        "options": _OPTIONS,
        "arch": arch,
        "compiler": compiler,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cache_directory() -> Path:
    """Where cubins are kept: the user's cache directory."""
    return code_folder("kernels")


def cubin(unit: str, arch: str, directory: Path | None = None) -> bytes:
    """One of `UNITS` compiled for `arch`, from the cache where it is there and can be trusted.

    Parameters
    ----------
    unit : ``blend``, ``masks``, ``linkage`` or ``aggregate``.
    arch : such as ``sm_90``.
    directory : of the cache; default `cache_directory`. One that cannot be written is no error.

    Raises
    ------
    DeviceError
        `cuda.core` or NVRTC is missing, or the source does not compile.
    """
    source = source_text(unit)
    name = f"{unit}-{arch}-{cache_key(source, arch, compiler_version())}.cubin"
    path = (directory or cache_directory()) / name
    kept = read_code(path, _WHAT)
    if kept is not None:
        return kept
    made = _compile(unit, source, arch)
    write_code(path, made, _WHAT)
    return made


def _compile(unit: str, source: str, arch: str) -> bytes:
    core = cuda_module()
    options = core.ProgramOptions(name=f"vitcx_{unit}", arch=arch, **_OPTIONS)
    try:
        program = core.Program(source, "c++", options)
        try:
            return bytes(program.compile("cubin").code)
        finally:
            program.close()
    except Exception as error:  # cuda-core's own classes differ between its versions
        raise DeviceError(f"NVRTC does not compile '{unit}' for {arch}: {error}") from error
