"""The one place that imports ONNX Runtime.

From version 1.32 on, its builds for Linux collect usage data: on import they write a device
identifier below ``~/.cache/Microsoft``, and after some seconds they call a host of Microsoft's. The
environment variable ``ORT_DISABLE_TELEMETRY`` keeps them from it, if it is set before the import.
"""

from __future__ import annotations

import contextlib
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from vitcx.runtime.errors import MissingExtraError
from vitcx.runtime.graph_interface import GraphTensor, Interface

# Distributions that install the same module onnxruntime, each over the others' files.
_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
)
TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"


def switch_telemetry_off() -> None:
    """Keep ONNX Runtime from collecting usage data, unless the variable is set already.

    What this process starts inherits it. Without effect where ONNX Runtime is imported already.
    """
    os.environ.setdefault(TELEMETRY_SWITCH, "1")


def import_onnxruntime(feature: str = "the engine 'onnxruntime'", extra: str = "cpu") -> Any:
    """The module onnxruntime, with its telemetry off.

    Parameters
    ----------
    feature, extra : what needs it, and the extra of vitcx that installs it.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    switch_telemetry_off()
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError(feature, "onnxruntime", extra) from None
    return onnxruntime


def open_on_cpu(onnxruntime: Any, path: str | Path, options: Any = None) -> Any:
    """ONNX Runtime's session of a graph on the CPU.

    Where it cannot be made, ONNX Runtime would print the error and try the same again; here it is
    raised, and nothing is printed.
    """
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
    )


def clashing_packages() -> list[str]:
    """One line if several of its packages are installed, else none."""
    installed = []
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(name)
            installed.append(name)
    if len(installed) < 2:
        return []
    return [
        f"{' and '.join(installed)} are both installed and overwrite each other's files: run  pip "
        f"uninstall {' '.join(installed)}  and install the one you want again"
    ]


def interface_of_session(session: Any) -> Interface:
    """What the graph of an `onnxruntime.InferenceSession` takes and gives."""
    return Interface(
        tuple(_tensor(value) for value in session.get_inputs()),
        tuple(_tensor(value) for value in session.get_outputs()),
    )


def _tensor(value: Any) -> GraphTensor:
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    # ONNX's names of the others are NumPy's.
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
    return GraphTensor(value.name, dtype, sizes)
