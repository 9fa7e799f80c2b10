"""NVIDIA's Python packages, imported on first use: no module of ours needs them to be imported."""

from __future__ import annotations

import importlib
import threading
from types import ModuleType

from vitcx.kernels.errors import DeviceError

# While one thread imports `cuda.core`, Python hands it to others half made: it overwrites what
# Python's own lock of a module goes by.
_IMPORTING = threading.Lock()


def cuda_module(name: str = "cuda.core") -> ModuleType:
    """One of the packages that `vitcx[gpu]` installs.

    Raises
    ------
    DeviceError
        It is not installed, or does not load.
    """
    try:
        with _IMPORTING:
            return importlib.import_module(name)
    except ImportError as error:
        raise DeviceError(
            f"The GPU path needs the module '{name}' ({error}): run  pip install 'vitcx[gpu]'"
        ) from error
