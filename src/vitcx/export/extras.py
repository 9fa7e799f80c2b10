"""Checks that what export needs is installed, in a module that needs none of it."""

from __future__ import annotations

import importlib

from vitcx.export.timm_import import import_timm
from vitcx.runtime.errors import MissingExtraError
from vitcx.runtime.onnx_runtime import switch_telemetry_off

# Those of the extra `export`, in the order in which they are met.
_MODULES = ("torch", "timm", "safetensors", "onnx", "onnxscript", "onnxruntime")


def require_export_extra() -> None:
    """Import what the extra ``export`` installs.

    Raises
    ------
    MissingExtraError
        For the first module that is not there. One that is there and cannot be imported, because
        its installation is broken, raises its own error.
    """
    switch_telemetry_off()  # some of these import ONNX Runtime themselves
    for name in _MODULES:
        try:
            if name == "timm":
                import_timm()
            else:
                importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = (error.name or name).partition(".")[0]
            if missing not in _MODULES:
                raise
            raise MissingExtraError("vitcx export", missing, "export") from None
