"""ViT-CX explanations of Vision Transformers, without PyTorch at run time.

>>> import vitcx
>>> with vitcx.load("demo") as explainer:  # doctest: +SKIP
...     explainer.explain("photo.jpg").overlay().save("overlay.png")

Names are imported when they are first used: `import vitcx` does no work.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitcx import dataset, evaluation, export, kernels, runtime, serving
    from vitcx.runtime.bundle import Bundle, read_bundle
    from vitcx.runtime.engines.registry import EngineStatus, probe_engines
    from vitcx.runtime.errors import (
        BundleError,
        EngineError,
        InputError,
        MissingExtraError,
        VitcxError,
    )
    from vitcx.runtime.explainer import Explainer, load
    from vitcx.runtime.explanation import Explanation
    from vitcx.runtime.manifest import Manifest

    __version__: str

_HOMES = {
    "Bundle": "vitcx.runtime.bundle",
    "BundleError": "vitcx.runtime.errors",
    "EngineError": "vitcx.runtime.errors",
    "EngineStatus": "vitcx.runtime.engines.registry",
    "Explainer": "vitcx.runtime.explainer",
    "Explanation": "vitcx.runtime.explanation",
    "InputError": "vitcx.runtime.errors",
    "Manifest": "vitcx.runtime.manifest",
    "MissingExtraError": "vitcx.runtime.errors",
    "VitcxError": "vitcx.runtime.errors",
    "load": "vitcx.runtime.explainer",
    "probe_engines": "vitcx.runtime.engines.registry",
    "read_bundle": "vitcx.runtime.bundle",
}
_PACKAGES = ("dataset", "evaluation", "export", "kernels", "runtime", "serving")

__all__ = [
    "Bundle",
    "BundleError",
    "EngineError",
    "EngineStatus",
    "Explainer",
    "Explanation",
    "InputError",
    "Manifest",
    "MissingExtraError",
    "VitcxError",
    "__version__",
    "dataset",
    "evaluation",
    "export",
    "kernels",
    "load",
    "probe_engines",
    "read_bundle",
    "runtime",
    "serving",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"vitcx.{name}")
    if name == "__version__":
        return _version()
    raise AttributeError(f"module 'vitcx' has no attribute {name!r}")


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("vitcx")
    except metadata.PackageNotFoundError:  # run from a folder of sources, without installing
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted(__all__)
