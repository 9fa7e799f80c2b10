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
    from vitcx.runtime.bundle import Bundle, Manifest, read_bundle
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

_HOMES = {
    "Bundle": "bundle",
    "BundleError": "errors",
    "EngineError": "errors",
    "EngineStatus": "engines",
    "Explainer": "explainer",
    "Explanation": "explanation",
    "InputError": "errors",
    "Manifest": "bundle",
    "MissingExtraError": "errors",
    "VitcxError": "errors",
    "load": "explainer",
    "probe_engines": "engines",
    "read_bundle": "bundle",
}

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
    "load",
    "probe_engines",
    "read_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitcx' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vitcx.runtime.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
