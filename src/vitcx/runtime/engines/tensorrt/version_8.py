"""What TensorRT 8.6 needs otherwise than newer versions.

It stays because it was the last TensorRT with a whole wheel on PyPI. To drop it, delete this
module, its tests, ``benchmarks/gpu/opset17.py``, and each line that names `version_8`.
"""

from __future__ import annotations

from typing import Any

from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.tensorrt.library import Library
from vitcx.runtime.errors import EngineError


def is_version_8(library: Library) -> bool:
    """Whether it is TensorRT 8 or 9: their networks have no types, their builds no progress."""
    return library.flavour == "tensorrt" and library.major < 10


def network_flags(library: Library) -> int:
    """For `Builder.create_network`."""
    return 1 << int(library.module.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)


def configure(library: Library, config: Any, bundle: Bundle) -> None:
    """Allow the builder the bundle's precision, and contexts on several threads.

    Raises
    ------
    EngineError
        It cannot be held to that precision.
    """
    precision = bundle.manifest.precision
    if precision == "fp16":
        config.set_flag(library.module.BuilderFlag.FP16)
        config.set_flag(library.module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    elif precision != "fp32":
        raise EngineError(
            f"TensorRT {library.version} cannot be held to the precision {precision}: "
            "use TensorRT 10 or newer, or an fp32 or fp16 bundle"
        )
    # From TensorRT 10 on, as many contexts as there are threads may use one profile.
    config.set_preview_feature(library.module.PreviewFeature.PROFILE_SHARING_0806, True)


def error_in_words(error: Any) -> str:
    """A parser's error, which says neither the operator nor the node's name."""
    return f"node {error.node()}: {error.desc()}"
