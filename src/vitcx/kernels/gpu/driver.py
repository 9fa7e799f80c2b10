"""What NVIDIA's driver says of this machine, asked of the driver alone: no other library needed.

Cheap enough to ask before every choice of an engine: it makes no context on any GPU.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

from vitcx.kernels.errors import DeviceError

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NAME_BYTES = 256
# CUdevice_attribute.
_MAJOR, _MINOR = 75, 76
_MEANING = {
    3: "the driver is not initialised",
    100: "there is no GPU, or none that this process may see (CUDA_VISIBLE_DEVICES)",
    803: "the driver and the CUDA libraries do not fit together: reboot after a driver update",
    999: "the driver does not say why: `nvidia-smi` may",
}


@dataclass(frozen=True)
class GpuFacts:
    """One GPU. `compute_capability` is such as ``9.0``."""

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True)
class Driver:
    """The driver: the newest CUDA it runs, such as ``13.0``, and the GPUs it shows."""

    cuda: str
    gpus: tuple[GpuFacts, ...]


def find_driver(library: str = LIBRARY) -> Driver:
    """The driver and its GPUs, at least one.

    Parameters
    ----------
    library : the driver's, as the loader knows it.

    Raises
    ------
    DeviceError
        There is no driver, or it shows no GPU. One line: what is missing, and what to do.
    """
    try:
        driver: Any = ctypes.CDLL(library)
    except OSError:
        raise DeviceError(
            f"no NVIDIA driver ({library}): where the machine has an NVIDIA GPU, install the driver"
        ) from None
    _check(driver.cuInit(0))
    version = _number(driver.cuDriverGetVersion)
    gpus = tuple(_gpu(driver, index) for index in range(_number(driver.cuDeviceGetCount)))
    if not gpus:
        raise DeviceError(f"no GPU: {_MEANING[100]}")
    return Driver(f"{version // 1000}.{version % 1000 // 10}", gpus)


def _gpu(driver: Any, index: int) -> GpuFacts:
    device = _number(driver.cuDeviceGet, index)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _check(driver.cuDeviceGetName(name, _NAME_BYTES, device))
    memory = ctypes.c_size_t()
    _check(driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
    major, minor = (_number(driver.cuDeviceGetAttribute, a, device) for a in (_MAJOR, _MINOR))
    return GpuFacts(name.value.decode(errors="replace"), f"{major}.{minor}", memory.value)


def _number(function: Any, *arguments: int) -> int:
    """The int that a driver function writes through its first parameter."""
    value = ctypes.c_int()
    _check(function(ctypes.byref(value), *arguments))
    return value.value


def _check(status: int) -> None:
    if status != 0:
        raise DeviceError(
            f"no usable GPU: CUDA error {status}, {_MEANING.get(status, 'see CUresult')}"
        )
