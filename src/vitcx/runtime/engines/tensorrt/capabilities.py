"""Which GPUs a library builds and runs plans for, by their compute capability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitcx.runtime.engines.tensorrt.library import Library
from vitcx.runtime.errors import EngineError


def supported_capabilities(library: Library) -> tuple[str, ...]:
    """Compute capabilities that the library can build for ahead of time; none for TensorRT."""
    names = getattr(library.module, "ComputeCapability", None)
    members: Mapping[str, Any] = getattr(names, "__members__", {})
    numbers = sorted(int(name[2:]) for name in members if name.startswith("SM"))
    return tuple(f"{number // 10}.{number % 10}" for number in numbers)


def why_not_on(library: Library, capability: str) -> str:
    """Why the library runs on no GPU of a compute capability; "" where it may.

    TensorRT-RTX opens no plan on one that is not in its list, unless that is newer than all there.
    """
    supported = supported_capabilities(library)

    def number(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("."))

    if not supported or capability in supported or number(capability) > number(supported[-1]):
        return ""
    return (
        f"{library.flavour} {library.version} does not run on GPUs of compute capability "
        f"{capability}, only on {', '.join(supported)} and newer ones: take another engine"
    )


def check_capabilities(library: Library, capabilities: tuple[str, ...]) -> None:
    """Raise `EngineError` if the library cannot build ahead of time for one of them."""
    supported = supported_capabilities(library)
    for capability in capabilities:
        if capability not in supported:
            raise EngineError(
                f"{library.flavour} {library.version} cannot build for the compute capability "
                f"{capability}: "
                + (
                    f"it has {', '.join(supported)}"
                    if supported
                    else "it builds for the GPU that it runs on; use tensorrt-rtx to build ahead"
                )
            )


def set_targets(library: Library, config: Any, capabilities: tuple[str, ...]) -> None:
    """Build ahead of time for these GPUs. TensorRT-RTX alone has the calls."""
    check_capabilities(library, capabilities)
    config.num_compute_capabilities = len(capabilities)
    for place, capability in enumerate(capabilities):
        member = getattr(library.module.ComputeCapability, f"SM{capability.replace('.', '')}")
        config.set_compute_capability(member, place)
