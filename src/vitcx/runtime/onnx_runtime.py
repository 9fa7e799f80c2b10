"""The one place that imports ONNX Runtime.

From version 1.32 on, its builds for Linux collect usage data: on import they write a device
identifier below ``~/.cache/Microsoft``, and after some seconds they call a host of Microsoft's. The
environment variable ``ORT_DISABLE_TELEMETRY`` keeps them from it, if it is set before the import.
"""

from __future__ import annotations

import os
from typing import Any

from vitcx.runtime.errors import MissingExtraError

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
