"""The plan of a bundle for this machine's GPU: from the cache, else built."""

from __future__ import annotations

import dataclasses
import logging

from vitcx.runtime.bundle import Bundle
from vitcx.runtime.plan_cache import PlanKey, cache_directory, drop, find, get_or_build
from vitcx.runtime.tensorrt_builder import (
    BuildOptions,
    Shapes,
    build_plan,
    supported_capabilities,
)
from vitcx.runtime.tensorrt_library import Library
from vitcx.runtime.tensorrt_progress import Progress

__all__ = ["BuildOptions", "Shapes", "forget_plan", "plan_for", "plan_key"]

log = logging.getLogger("vitcx")


def plan_for(
    library: Library,
    bundle: Bundle,
    shapes: Shapes,
    options: BuildOptions,
    gpu_name: str,
    compute_capability: str,
    report: Progress | None = None,
) -> bytes:
    """The bundle's plan, from this user's cache or built now, which can take minutes.

    Its digest has been checked: it may be given to `Runtime.deserialize_cuda_engine`.

    Parameters
    ----------
    library : found by `find_library`.
    bundle : checked against its digests.
    shapes : of the two profiles, `ENCODE` and `SCORE` of `tensorrt_builder`.
    options : of the builder. `compute_capabilities` is left empty, and `timing_cache` None means
        the user's cache.
    gpu_name, compute_capability : of the GPU that is to run it, such as "NVIDIA H200" and "9.0".
    report : told each phase of a build.

    Raises
    ------
    BundleError, EngineError
        As `build_plan` does.
    """
    ahead = plan_key(library, bundle, shapes, options, "", compute_capability)
    taken = find(ahead)
    if taken is not None:
        log.info("plan: built ahead of time for compute capability %s", compute_capability)
        return taken
    key = plan_key(library, bundle, shapes, options, gpu_name, compute_capability)
    targets: tuple[str, ...] = ()
    if compute_capability in supported_capabilities(library):
        targets = (compute_capability,)
    name = "".join(c if c.isalnum() else "-" for c in f"{library.version}-{gpu_name}")
    settled = dataclasses.replace(
        options,
        compute_capabilities=targets,
        timing_cache=options.timing_cache or cache_directory() / f"{name}.timings",
    )

    def build() -> bytes:
        log.info("building a plan for %s: this is done once and can take minutes", gpu_name)
        built = build_plan(library, bundle, shapes, settled, report)
        told = built.report
        log.info("plan: %.1f s, %.1f MB", told.seconds, told.bytes / 1e6)
        log.info("plan: %s", told.attention_in_words())
        return built.plan

    return get_or_build(key, build)


def plan_key(
    library: Library,
    bundle: Bundle,
    shapes: Shapes,
    options: BuildOptions,
    gpu_name: str,
    compute_capability: str,
) -> PlanKey:
    """The key of a plan; with `gpu_name` "", of one that was built ahead of time."""
    settings = dataclasses.asdict(options)
    # The targets are in the key as the capability it runs on; timings change no result.
    for name in ("compute_capabilities", "timing_cache"):
        del settings[name]
    return PlanKey(
        files=dict(bundle.manifest.files),
        flavour=library.flavour,
        version=library.version,
        compute_capability=compute_capability,
        gpu_name=gpu_name,
        precision=bundle.manifest.precision,
        shapes=dataclasses.asdict(shapes),
        options=settings,
    )


def forget_plan(
    library: Library,
    bundle: Bundle,
    shapes: Shapes,
    options: BuildOptions,
    gpu_name: str,
    compute_capability: str,
    why: str,
) -> None:
    """Take a plan that `plan_for` gave out of the cache: it cannot be used, and `why` is logged."""
    log.warning("the plan is built again: %s", why)
    for name in ("", gpu_name):
        drop(plan_key(library, bundle, shapes, options, name, compute_capability))
