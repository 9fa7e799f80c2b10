"""CUDA's current device. It belongs to the calling thread, and to whoever set it there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vitcx.kernels.errors import DeviceArrayError
from vitcx.kernels.gpu.cuda_modules import cuda_module


@contextlib.contextmanager
def device_kept() -> Iterator[None]:
    """Whatever becomes the thread's current device here, the one from before is it again after."""
    driver = cuda_module("cuda.bindings.driver")
    status, before = driver.cuCtxGetCurrent()
    try:
        yield
    finally:
        if int(status) == 0:
            driver.cuCtxSetCurrent(before)  # none, where there was none


@contextlib.contextmanager
def device_current(index: int) -> Iterator[None]:
    """Make a GPU the calling thread's, and give the thread back the one that it had."""
    with device_kept():
        cuda_module().Device(index).set_current()
        yield


def device_of_memory(pointer: int) -> int:
    """Index of the GPU that device memory lies on: not every protocol says.

    Raises
    ------
    DeviceArrayError
        The driver knows of no memory there.
    """
    driver = cuda_module("cuda.bindings.driver")
    driver.cuInit(0)
    ordinal = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    status, index = driver.cuPointerGetAttribute(ordinal, pointer)
    if int(status) != 0:
        raise DeviceArrayError(f"Got the address {pointer:#x}, where the driver knows no memory")
    return int(index)
