"""Our kernels on one GPU: compiled, loaded, and launched by name.

Launching queues work on the stream that is given and returns at once. Never ran on hardware so far,
see docs/gpu-notes.md; the device logic itself is tested on the CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitcx.kernels.gpu.compiler import cubin
from vitcx.kernels.gpu.cuda_modules import cuda_module
from vitcx.kernels.gpu.device import Gpu
from vitcx.kernels.gpu.streams import Stream

# Threads of a block, unless a kernel says otherwise.
BLOCK = 256


class KernelLauncher:
    """Launches the kernels of cuda/*.cu. A unit is compiled when a kernel of it is first needed.

    Parameters
    ----------
    gpu : the device.
    cache : directory of the compiled kernels; default `compiler.cache_directory`.
    """

    def __init__(self, gpu: Gpu, cache: Path | None = None) -> None:
        self._gpu = gpu
        self._cache = cache
        self._modules: dict[str, Any] = {}
        self._kernels: dict[tuple[str, str], Any] = {}
        self._resident: dict[tuple[str, str], int] = {}

    def prepare(self, unit: str, kernel: str) -> None:
        """Compile and load a kernel; `DeviceError` where that cannot be done."""
        self._kernel(unit, kernel)

    def launch(
        self,
        unit: str,
        kernel: str,
        grid: tuple[int, int, int],
        stream: Stream,
        *arguments: int | np.int32,
        block: int = BLOCK,
    ) -> None:
        """Queue a kernel.

        Parameters
        ----------
        arguments : pointers as Python's integers, which cuda.core passes as 8 bytes, and numbers as
            NumPy's scalars, which it passes as they are.
        """
        core = cuda_module()
        config = core.LaunchConfig(grid=grid, block=block)
        core.launch(stream.native, config, self._kernel(unit, kernel), *arguments)

    def resident_blocks(self, unit: str, kernel: str) -> int:
        """How many blocks of `BLOCK` threads of a kernel the device holds at once."""
        key = (unit, kernel)
        if key not in self._resident:
            occupancy = self._kernel(unit, kernel).occupancy
            per_processor = occupancy.max_active_blocks_per_multiprocessor(BLOCK, 0)
            self._resident[key] = int(per_processor) * self._gpu.processors
        return self._resident[key]

    def _kernel(self, unit: str, name: str) -> Any:
        if (unit, name) not in self._kernels:
            if unit not in self._modules:
                code = cubin(unit, self._gpu.arch, self._cache)
                self._modules[unit] = cuda_module().ObjectCode.from_cubin(code, name=unit)
            self._kernels[unit, name] = self._modules[unit].get_kernel(name)
        return self._kernels[unit, name]


def int32s(*numbers: int) -> tuple[np.int32, ...]:
    """A kernel's int arguments."""
    return tuple(np.int32(number) for number in numbers)
