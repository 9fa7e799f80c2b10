"""Offline: a model becomes a bundle. Importing this package needs neither torch nor timm."""

from vitcx.export.exporting import export_model
from vitcx.export.foreign.importing import import_onnx
from vitcx.export.spec import ModelSpec

__all__ = ["ModelSpec", "export_model", "import_onnx"]
