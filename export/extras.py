"""Checks that what export needs is installed, in a module that needs none of it."""

from __future__ import annotations

import importlib

from vitcx.runtime.errors import MissingExtraError

# In the order in which a user without the extra meets them.
_MODULES = ("torch", "timm", "safetensors", "onnx", "onnxscript", "onnxruntime")


def require_export_extra() -> None:
    """Raise `MissingExtraError` for the first module of the extra ``export`` that is not there.

    A module that is there and cannot be imported (a broken installation) raises its own error.
    """
    for name in _MODULES:
        if name == "timm":
            from vitcx.export.timm_import import import_timm as load
        else:

            def load(name: str = name) -> object:
                return importlib.import_module(name)

        try:
            load()
        except ModuleNotFoundError as error:
            missing = error.name or name
            if missing.split(".")[0] not in _MODULES:
                raise
            raise MissingExtraError("vitcx export", missing, "export") from None
