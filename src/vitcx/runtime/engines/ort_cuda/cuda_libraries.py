"""CUDA's libraries, loaded for ONNX Runtime, which does not look into NVIDIA's wheels by itself."""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import sys
import threading
from collections.abc import Callable

# What ONNX Runtime prints of a library that the loader has not got; of a wheel's file that does not
# load it prints the like, with a path, before it asks the loader.
_NOT_LOADED = re.compile(r"^Failed to load ([^/\\:\s]+): (.+)", re.MULTILINE)
# `sys.stdout` is the whole process's: two that redirect it at once may not give it back.
_REDIRECTING = threading.Lock()
_CUDNN = "cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9"


def preload_cuda_libraries(ort: object) -> list[str]:
    """Load the wheels' CUDA libraries.

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
