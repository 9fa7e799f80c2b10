"""Which engines can run on this machine, and what the others lack.

A probe is cheap and never raises: no session is opened, and a library is loaded only where there is
a device for it. So "available" is a promise that nothing known is missing, not that opening works.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType

from vitcx.kernels.errors import DeviceError, first_line
from vitcx.kernels.gpu.driver import Driver, find_driver
from vitcx.runtime.errors import EngineError, MissingExtraError

# Distributions that install the same module onnxruntime, each over the others' files.
_ONNXRUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
)
# What ONNX Runtime prints of a library that the loader has not got; of a wheel's file that does not
# load it prints the like, with a path, before it asks the loader.
_NOT_LOADED = re.compile(r"^Failed to load ([^/\\:\s]+): (.+)", re.MULTILINE)
# `sys.stdout` is the whole process's: two that redirect it at once may not give it back.
_REDIRECTING = threading.Lock()
_CUDNN = "cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9"


@dataclass(frozen=True)
class EngineStatus:
    """Whether an engine can run here.

    Attributes
    ----------
    reason : what it would run on, or the first thing that it lacks and what to do.
    problems : everything that it lacks; empty where it is available.
    notes : what is worth knowing and does not keep it from running.
    """

    name: str
    available: bool
    reason: str
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def probe_onnxruntime() -> EngineStatus:
    """ONNX Runtime on the CPU."""
    from vitcx.runtime.onnx_runtime import import_onnxruntime

    try:
        ort = import_onnxruntime()
    except Exception as error:  # a broken installation fails in its own ways
        return _status("onnxruntime", "", [first_line(error)])
    notes = _clashing_onnxruntimes()
    return _status("onnxruntime", f"ONNX Runtime {ort.__version__} on the CPU", [], notes)


def probe_openvino(name: str) -> EngineStatus:
    """OpenVINO on the CPU: `name` is ``openvino`` or ``openvino-bf16``."""
    from vitcx.runtime.engines.cpu.openvino_session import PRECISIONS, cpu_of, import_openvino

    try:
        openvino = import_openvino(name)
        cpu = cpu_of(openvino.Core())
    except Exception as error:
        return _status(name, "", [first_line(error)])
    problems = [] if PRECISIONS[name] in cpu.precisions else [cpu.lacks(PRECISIONS[name])]
    runs_on = f"OpenVINO {openvino.__version__.split('-')[0]} on {cpu.name}, {PRECISIONS[name]}"
    return _status(name, runs_on, problems)


def probe_cuda() -> EngineStatus:
    """ONNX Runtime on an NVIDIA GPU."""
    problems, driver = _gpu_problems()
    notes = _clashing_onnxruntimes()
    version = ""
    if not _is_installed("onnxruntime"):
        missing = MissingExtraError("the engine 'cuda'", "onnxruntime", "gpu")
        problems.append(str(missing))
    else:
        from vitcx.runtime.onnx_runtime import import_onnxruntime

        try:
            onnxruntime = import_onnxruntime("the engine 'cuda'", "gpu")
            version = onnxruntime.__version__
            built_for = onnxruntime.get_available_providers()
        except Exception as error:
            problems.append(first_line(error))
        else:
            if "CUDAExecutionProvider" not in built_for:
                problems.append(
                    f"the onnxruntime {version} that is installed is not built for CUDA: run  pip "
                    "uninstall onnxruntime && pip install 'vitcx[gpu]'"
                )
            elif driver is not None:
                problems += _driver_too_old(onnxruntime, driver)
                problems += preload_cuda_libraries(onnxruntime)
    return _status("cuda", f"ONNX Runtime {version} on {_gpu(driver)}", problems, notes)


def probe_tensorrt(flavour: str) -> EngineStatus:
    """TensorRT's own runtime: `flavour` is ``tensorrt`` or ``tensorrt-rtx``."""
    from vitcx.runtime.engines.tensorrt.capabilities import why_not_on
    from vitcx.runtime.engines.tensorrt.library import FLAVOURS, find_library

    problems, driver = _gpu_problems()
    version = ""
    if driver is None and _is_installed(FLAVOURS[flavour][0]):
        return _status(flavour, "", problems)  # there is nothing to load the library for
    try:
        library = find_library(flavour)
        version = library.version
        if driver is not None:
            reason = why_not_on(library, driver.gpus[0].compute_capability)
            problems += [reason] if reason else []
    except (EngineError, MissingExtraError) as error:
        problems.append(str(error))
    except Exception as error:
        problems.append(f"{flavour} does not work: {first_line(error)}")
    return _status(flavour, f"{flavour} {version} on {_gpu(driver)}", problems)


def preload_cuda_libraries(ort: object) -> list[str]:
    """Load the wheels' CUDA libraries for ONNX Runtime, which does not look there by itself.

    Returns
    -------
    what is neither in a wheel nor where the loader looks, and without which no graph of ours runs.
    """
    preload: Callable[[], None] | None = getattr(ort, "preload_dlls", None)
    said = io.StringIO()
    if preload is not None:  # since 1.21
        with _REDIRECTING, contextlib.redirect_stdout(said):
            preload()
    missing = [
        f"{name} does not load ({reason}): run  pip install 'vitcx[gpu]'"
        for name, reason in _NOT_LOADED.findall(said.getvalue())
        # NVRTC has its own check, as ours; cuDNN and its parts are below, all in one.
        if "nvrtc" not in name and "cudnn" not in name
    ]
    try:
        ctypes.CDLL(_CUDNN)  # newer versions look for it when a convolution runs
    except OSError:
        missing.append(f"cuDNN 9 ({_CUDNN}) is not found: run  pip install 'vitcx[gpu]'")
    return missing


def _driver_too_old(ort: ModuleType, driver: Driver) -> list[str]:
    built_for: str = getattr(ort, "cuda_version", "")
    major = built_for.partition(".")[0]
    if not major.isdigit() or int(major) <= int(driver.cuda.partition(".")[0]):
        return []
    return [
        f"the onnxruntime {ort.__version__} that is installed is built for CUDA {built_for}, and "
        f"the NVIDIA driver runs CUDA {driver.cuda} at most: install a newer driver, or an "
        "onnxruntime-gpu that is built for an older CUDA"
    ]


def _gpu_problems() -> tuple[list[str], Driver | None]:
    """What every GPU engine needs and this machine lacks; the driver if it is there."""
    from vitcx.kernels.gpu.compiler import compiler_version

    problems: list[str] = []
    driver = None
    try:
        driver = find_driver()
    except DeviceError as error:
        problems.append(str(error))
    except Exception as error:  # somebody else's library under the driver's name
        problems.append(f"the NVIDIA driver does not answer: {first_line(error)}")
    if driver is not None and int(driver.cuda.partition(".")[0]) < 12:
        problems.append(
            f"the NVIDIA driver runs CUDA {driver.cuda} at most, and vitcx needs 12: install a "
            "newer driver"
        )
    for package in ("cuda.core", "cuda.bindings"):
        if not _is_installed(package):
            problems.append(
                f"the module '{package}' is not installed: run  pip install 'vitcx[gpu]'"
            )
            break
    else:
        try:
            compiler_version()
        except Exception as error:
            problems.append(first_line(error))
    return problems, driver


def _clashing_onnxruntimes() -> list[str]:
    installed = []
    for name in _ONNXRUNTIMES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(name)
            installed.append(name)
    if len(installed) < 2:
        return []
    return [
        f"{' and '.join(installed)} are both installed and overwrite each other's files: run  pip "
        f"uninstall {' '.join(installed)}  and install the one you want again"
    ]


def _is_installed(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a parent package is missing or broken
        return False
    return spec is not None and spec.origin is not None  # a bare folder is no module


def _status(
    name: str, runs_on: str, problems: list[str], notes: list[str] | None = None
) -> EngineStatus:
    reason = problems[0] if problems else runs_on
    return EngineStatus(name, not problems, reason, tuple(problems), tuple(notes or ()))


def _gpu(driver: Driver | None) -> str:
    if driver is None:
        return "no GPU"
    gpu = driver.gpus[0]
    return f"{gpu.name} (compute capability {gpu.compute_capability})"
