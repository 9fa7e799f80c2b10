"""The plan of a bundle for this machine's GPU: from the cache, else built."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.tensorrt.build_options import BuildOptions
from vitcx.runtime.engines.tensorrt.builder import build_plan
from vitcx.runtime.engines.tensorrt.capabilities import supported_capabilities, why_not_on
from vitcx.runtime.engines.tensorrt.interface import takes_teams
from vitcx.runtime.engines.tensorrt.library import Library
from vitcx.runtime.engines.tensorrt.plan_cache import (
    PlanKey,
    cache_directory,
    drop,
    find,
    get_or_build,
)
from vitcx.runtime.engines.tensorrt.profiles import ENCODE, SCORE, SHORT, TEAMS, Shapes
from vitcx.runtime.engines.tensorrt.progress import Progress
from vitcx.runtime.errors import EngineError
from vitcx.runtime.manifest import TEAMS_NAME

log = logging.getLogger("vitcx")


@dataclass(frozen=True)
class PlanOrder:
    """What a plan is wanted of and for.

    Attributes
    ----------
    library : found by `find_library`.
    bundle : checked against its digests.
    shapes : of its profiles.
    options : of the builder. `compute_capabilities` is left empty, and `timing_cache` None means
        the user's cache.
    gpu_name, compute_capability : of the GPU that is to run it, such as "NVIDIA H200" and "9.0".
        The name is "" for a plan built ahead of time, which runs on any GPU of that capability.
    """

    library: Library
    bundle: Bundle
    shapes: Shapes
    options: BuildOptions
    gpu_name: str
    compute_capability: str

    def ahead(self) -> PlanOrder:
        """The same, built ahead of time."""
        return dataclasses.replace(self, gpu_name="")

    def parts(self) -> dict[str, PlanOrder]:
        """By profile, the order of the plan that has it."""
        graphs = plan_graphs(self.library, self.bundle, self.shapes)
        return {
            profile: dataclasses.replace(self, bundle=bundle, shapes=shapes)
            for bundle, shapes in graphs
            for profile in shapes.profiles
        }


def plan_graphs(library: Library, bundle: Bundle, shapes: Shapes) -> list[tuple[Bundle, Shapes]]:
    """What plans a bundle needs: of which graph, for which profiles. What scores comes first."""
    encoder = bundle.encoder
    graphs = [(bundle, shapes)]
    if encoder is not bundle:
        graphs = [(bundle, shapes.only(SCORE, SHORT)), (encoder, shapes.only(ENCODE))]
    if takes_teams(library, bundle):
        teams = dataclasses.replace(bundle, graph_name=TEAMS_NAME)
        graphs.append((teams, shapes.only(TEAMS)))
    return graphs


def plan_for(order: PlanOrder, report: Progress | None = None) -> bytes:
    """The bundle's plan, from this user's cache or built now, which can take minutes.

    Its digest has been checked: it may be given to `Runtime.deserialize_cuda_engine`.

    Parameters
    ----------
    order : of a plan for this machine's GPU.
    report : told each phase of a build.

    Raises
    ------
    BundleError, EngineError
        As `build_plan` does.
    """
    library, gpu_name, compute_capability = order.library, order.gpu_name, order.compute_capability
    taken = find(plan_key(order.ahead()))
    if taken is not None:
        log.info("plan: built ahead of time for compute capability %s", compute_capability)
        return taken
    targets: tuple[str, ...] = ()
    if compute_capability in supported_capabilities(library):
        targets = (compute_capability,)
    elif reason := why_not_on(library, compute_capability):
        raise EngineError(reason)
    name = "".join(c if c.isalnum() else "-" for c in f"{library.version}-{gpu_name}")
    settled = dataclasses.replace(
        order.options,
        compute_capabilities=targets,
        timing_cache=order.options.timing_cache or cache_directory() / f"{name}.timings",
    )

    def build() -> bytes:
        log.info("building a plan for %s: this is done once and can take minutes", gpu_name)
        built = build_plan(library, order.bundle, order.shapes, settled, report)
        told = built.report
        log.info("plan: %.1f s, %.1f MB", told.seconds, told.bytes / 1e6)
        log.info("plan: %s", told.attention_in_words())
        return built.plan

    return get_or_build(plan_key(order), build)


def plan_key(order: PlanOrder) -> PlanKey:
    """The key under which an order's plan is kept."""
    settings = dataclasses.asdict(order.options)
    # The targets are in the key as the capability it runs on; timings change no result.
    for name in ("compute_capabilities", "timing_cache"):
        del settings[name]
    return PlanKey(
        files=dict(order.bundle.manifest.files),
        graph=order.bundle.graph_name,
        flavour=order.library.flavour,
        version=order.library.version,
        compute_capability=order.compute_capability,
        gpu_name=order.gpu_name,
        precision=order.bundle.manifest.precision,
        shapes=dataclasses.asdict(order.shapes),
        options=settings,
    )


def runtime_cache_path(order: PlanOrder, name: str) -> Path:
    """Where what TensorRT-RTX compiled for a sort of contexts on the order's plan is kept."""
    return cache_directory() / f"{plan_key(order).digest()}.{name}.runtime-cache"


def forget_plan(order: PlanOrder, why: str) -> None:
    """Take a plan that `plan_for` gave out of the cache: it cannot be used, and `why` is logged."""
    log.warning("the plan is built again: %s", why)
    for kept in (order.ahead(), order):
        drop(plan_key(kept))
