"""What every GPU engine needs of a machine."""

from __future__ import annotations

import importlib.util

from vitcx.kernels.errors import DeviceError, first_line
from vitcx.kernels.gpu.compiler import compiler_version
from vitcx.kernels.gpu.driver import Driver, GpuFacts, find_driver

# The oldest CUDA that cuda-core runs on.
_LEAST_CUDA = 12


def probe_gpu(device: int) -> tuple[list[str], Driver | None, GpuFacts | None]:
    """What every GPU engine needs and this machine lacks; the driver and the GPU, if there are.

    Never raises.
    """
    problems: list[str] = []
    driver = gpu = None
    try:
        driver = find_driver()
    except DeviceError as error:
        problems.append(str(error))
    except Exception as error:  # somebody else's library under the driver's name
        problems.append(f"the NVIDIA driver does not answer: {first_line(error)}")
    if driver is not None:
        if int(driver.cuda.partition(".")[0]) < _LEAST_CUDA:
            problems.append(
                f"the NVIDIA driver runs CUDA {driver.cuda} at most, and vitcx needs "
                f"{_LEAST_CUDA}: install a newer driver"
            )
        if device < len(driver.gpus):
            gpu = driver.gpus[device]
        else:
            problems.append(
                f"there is no GPU {device}: the driver shows {len(driver.gpus)}, counted from 0"
            )
    for package in ("cuda.core", "cuda.bindings"):
        if not is_installed(package):
            problems.append(
                f"the module '{package}' is not installed: run  pip install 'vitcx[gpu]'"
            )
            break
    else:
        try:
            compiler_version()
        except Exception as error:
            problems.append(first_line(error))
    return problems, driver, gpu


def gpu_in_words(gpu: GpuFacts | None) -> str:
    """The GPU that an engine would run on."""
    return "no GPU" if gpu is None else f"{gpu.name} (compute capability {gpu.compute_capability})"


def is_installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a parent package is missing or broken
        return False
    return spec is not None and spec.origin is not None  # a bare folder is no module
