"""The engine ``cuda``: ONNX Runtime on an NVIDIA GPU."""

from __future__ import annotations

from types import ModuleType

from vitcx.kernels.errors import first_line
from vitcx.kernels.gpu.driver import Driver
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.engine import Engine, EngineStatus, SessionOptions
from vitcx.runtime.engines.gpu_probe import gpu_in_words, is_installed, probe_gpu
from vitcx.runtime.engines.ort_cuda.cuda_libraries import preload_cuda_libraries
from vitcx.runtime.engines.ort_cuda.session import OnnxRuntimeCudaSession
from vitcx.runtime.engines.session import Session
from vitcx.runtime.errors import MissingExtraError
from vitcx.runtime.onnx_runtime import clashing_packages, import_onnxruntime

NAME = "cuda"
_EXTRA = "gpu"


def probe(device: int = 0) -> EngineStatus:
    """Whether there are a GPU, an ONNX Runtime that is built for it, and CUDA's libraries."""
    problems, driver, gpu = probe_gpu(device)
    notes = clashing_packages()
    version = ""
    if not is_installed("onnxruntime"):
        problems.append(str(MissingExtraError(f"the engine '{NAME}'", "onnxruntime", _EXTRA)))
        return EngineStatus.found(NAME, "", problems, notes)
    try:
        ort = import_onnxruntime(f"the engine '{NAME}'", _EXTRA)
        version = ort.__version__
        built_for = ort.get_available_providers()
    except Exception as error:
        problems.append(first_line(error))
        return EngineStatus.found(NAME, "", problems, notes)
    if "CUDAExecutionProvider" not in built_for:
        problems.append(
            f"the onnxruntime {version} that is installed is not built for CUDA: run  pip "
            "uninstall onnxruntime && pip install 'vitcx[gpu]'"
        )
    elif driver is not None:
        problems += _driver_too_old(ort, driver)
        problems += preload_cuda_libraries(ort)
    runs_on = f"ONNX Runtime {version} on {gpu_in_words(gpu)}"
    return EngineStatus.found(NAME, runs_on, problems, notes)


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


def _open(bundle: Bundle, options: SessionOptions) -> Session:
    return OnnxRuntimeCudaSession(
        bundle, options.threads, options.batch_size, device=options.device or 0
    )


ENGINE = Engine(NAME, _EXTRA, probe, _open, on_gpu=True)
