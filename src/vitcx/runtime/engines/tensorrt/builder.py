"""Builds a bundle's graph into a TensorRT plan: one engine with two optimisation profiles.

The precision is the graph's. Profile `ENCODE` takes 1 to N images, profile `SCORE` the fixed rows
of a mask batch, so that what runs most is compiled for one shape. A bundle whose encoder is a graph
of its own has a plan with one profile for each.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcx.runtime.bundle import EMBEDDING, INPUT, PROBABILITIES, Bundle
from vitcx.runtime.engines.tensorrt.library import Library, Message, Severity
from vitcx.runtime.engines.tensorrt.plan_cache import read_checked, write_checked
from vitcx.runtime.engines.tensorrt.plan_report import PlanReport, count_layers, each_once
from vitcx.runtime.engines.tensorrt.progress import Progress, Watch, progress_monitor
from vitcx.runtime.errors import BundleError, EngineError, InputError

if TYPE_CHECKING:
    import tensorrt as trt

# The optimisation profiles.
ENCODE, SCORE = "encode", "score"
# A graph of a kind that the parser does not know has a fault in each layer of it.
_MOST_REASONS = 3
_TIMINGS = "timing cache"


@dataclass(frozen=True)
class Shapes:
    """Batches that a plan is made for.

    Attributes
    ----------
    encode_images : most images of one `encode`, at least 1.
    batch_size : rows of a mask batch, at least 1; `score` always runs that many.
    profiles : which the plan has, in the order of their indices.
    """

    encode_images: int = 8
    batch_size: int = 64
    profiles: tuple[str, ...] = (ENCODE, SCORE)

    def __post_init__(self) -> None:
        if min(self.encode_images, self.batch_size) < 1:
            raise InputError(f"{self}: both must be at least 1")

    @classmethod
    def of_session(cls, batch_size: int, encode_images: int | None = None) -> Shapes:
        """Those that a session opens with; a plan built ahead is found only with the same ones."""
        most = cls.encode_images if encode_images is None else encode_images
        return cls(min(most, batch_size), batch_size)

    def only(self, profile: str) -> Shapes:
        """Those of a plan with one profile. The other's number is 1: the plan does not depend on
        it, and neither may its key.
        """
        if profile == ENCODE:
            return replace(self, batch_size=1, profiles=(ENCODE,))
        return replace(self, encode_images=1, profiles=(SCORE,))

    def images(self, profile: str) -> tuple[int, int]:
        """The least and the most images of a profile."""
        return (1, self.encode_images) if profile == ENCODE else (self.batch_size, self.batch_size)


@dataclass(frozen=True)
class BuildOptions:
    """Settings of the builder.

    Attributes
    ----------
    workspace_bytes : most device memory that one kernel may take for itself; None leaves
        TensorRT's own limit.
    tf32 : whether float32 products may be rounded to TF32's 10 bits. Off: vitcx claims parity.
    optimization_level : 0 to 5, TensorRT's; None leaves its own.
    timing_cache : file of kernel timings kept between builds; None keeps none. TensorRT-RTX times
        nothing when it builds.
    compute_capabilities : such as ("8.9", "12.0"), to build ahead of time on any machine, even one
        without a GPU (TensorRT-RTX alone). Empty: for this machine's GPU.
    """

    workspace_bytes: int | None = None
    tf32: bool = False
    optimization_level: int | None = None
    timing_cache: Path | None = None
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", capability):
                raise InputError(
                    f"the compute capability is {capability!r}, expected one such as 8.9"
                )
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise InputError(f"workspace_bytes is {self.workspace_bytes}: give at least 1, or None")
        if self.optimization_level not in (None, 0, 1, 2, 3, 4, 5):
            raise InputError(f"optimization_level is {self.optimization_level}, not in 0 to 5")


@dataclass(frozen=True)
class BuiltPlan:
    """A plan, and what is known of it."""

    plan: bytes
    report: PlanReport


def build_plan(
    library: Library,
    bundle: Bundle,
    shapes: Shapes,
    options: BuildOptions,
    report: Progress | None = None,
) -> BuiltPlan:
    """Build a bundle's plan.

    Parameters
    ----------
    library : found by `find_library`.
    bundle : checked against its digests.
    shapes : of the profiles.
    options : of the builder.
    report : told each phase. An exception that it raises ends the build, and is raised again.

    Raises
    ------
    BundleError
        The parser does not take the graph, or it is not a bundle's.
    EngineError
        The library cannot build it: the message has its own words.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.module
    start = time.perf_counter()
    with library.heard() as messages:
        # Raises TypeError where the library cannot start; its reason is in the log.
        try:
            builder = trt.Builder(library.logger)
        except TypeError:
            raise _failure(library, "cannot start a builder", messages) from None
        network = builder.create_network(library.network_flags)
        _parse(library, network, bundle)
        attentions = _count_attentions(library, network)
        config = builder.create_builder_config()
        _configure(library, config, bundle, options)
        channels = bundle.manifest.input_channels
        height, width = bundle.manifest.input_size
        for name in shapes.profiles:
            least, most = shapes.images(name)
            profile = builder.create_optimization_profile()
            small = trt.Dims4(least, channels, height, width)
            large = trt.Dims4(most, channels, height, width)
            profile.set_shape(INPUT, small, small, large)
            if config.add_optimization_profile(profile) < 0:
                raise _failure(library, f"refuses batches of {least} to {most}", messages)
        watch = Watch(report)
        monitor = progress_monitor(library, watch)  # the config holds no reference of its own
        if monitor is not None:
            config.progress_monitor = monitor
        timings = _timings(config, options, library)
        serialized = builder.build_serialized_network(network, config)
        watch.raise_what_came()
        if serialized is None:
            targets = ", ".join(options.compute_capabilities) or "this machine's GPU"
            raise _failure(library, f"cannot build '{bundle.path}' for {targets}", messages)
        plan = bytes(memoryview(serialized))
        if timings is not None and options.timing_cache is not None:
            kept = bytes(memoryview(timings.serialize()))
            write_checked(options.timing_cache, kept, _TIMINGS)
    layers, fused = count_layers(text for _, text in messages)
    return BuiltPlan(
        plan,
        PlanReport(
            library=f"{library.flavour} {library.version}",
            targets=options.compute_capabilities,
            seconds=time.perf_counter() - start,
            bytes=len(plan),
            profiles=config.num_optimization_profiles,
            attentions=attentions,
            layers=layers,
            fused=fused,
            warnings=each_once([t for severity, t in messages if severity == Severity.WARNING]),
        ),
    )


def _failure(library: Library, what: str, messages: list[Message]) -> EngineError:
    errors = [text for severity, text in messages if severity <= Severity.ERROR]
    reason = "; ".join(each_once(errors)) or "its log gives no reason"
    return EngineError(f"{library.flavour} {library.version} {what}: {reason}")


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


def _parse(library: Library, network: trt.INetworkDefinition, bundle: Bundle) -> None:
    """Fill the network from the bundle's graph; external weights lie beside it."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.module
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(bundle.model_path)):
        reasons = each_once([_told(parser.get_error(i)) for i in range(parser.num_errors)])
        more = len(reasons) - _MOST_REASONS
        raise BundleError(
            f"the parser of {library.flavour} {library.version} does not take "
            f"'{bundle.model_path}': {'; '.join(reasons[:_MOST_REASONS])}"
            + (f"; and {more} more" if more > 0 else "")
        )
    inputs = [network.get_input(i).name for i in range(network.num_inputs)]
    outputs = [network.get_output(i).name for i in range(network.num_outputs)]
    if inputs != [INPUT] or set(outputs) != {PROBABILITIES, EMBEDDING}:
        raise BundleError(
            f"the graph takes {inputs} and gives {outputs}; a bundle's takes ['{INPUT}'] and gives "
            f"'{PROBABILITIES}' and '{EMBEDDING}': export it again"
        )


def _told(error: Any) -> str:
    """A parser's error. TensorRT 8 does not say the operator, nor the node's name."""
    operator = getattr(error, "node_operator", None)
    if operator is None:
        return f"node {error.node()}: {error.desc()}"
    return f"{operator()} {error.node_name()}: {error.desc()}"


def _configure(
    library: Library, config: trt.IBuilderConfig, bundle: Bundle, options: BuildOptions
) -> None:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.module
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)  # it is on by default
    # With it, the log lists the layers of the engine. The plan is no larger for it.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    # Not TensorRT-RTX's REQUIRE_USER_ALLOCATION, which is to forbid allocations in a pass: with it,
    # version 1.7.1 writes to address 0 in the first pass of a profile whose batch varies.
    if not library.networks_have_types:
        _set_old_types(library, config, bundle)
        # From TensorRT 10 on, as many contexts as there are threads may use one profile.
        config.set_preview_feature(library.module.PreviewFeature.PROFILE_SHARING_0806, True)
    if options.compute_capabilities:
        _set_targets(library, config, options.compute_capabilities)


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


def _set_targets(library: Library, config: Any, capabilities: tuple[str, ...]) -> None:
    """Build ahead of time for these GPUs. TensorRT-RTX alone has the calls."""
    check_capabilities(library, capabilities)
    config.num_compute_capabilities = len(capabilities)
    for place, capability in enumerate(capabilities):
        member = getattr(library.module.ComputeCapability, f"SM{capability.replace('.', '')}")
        config.set_compute_capability(member, place)


def _set_old_types(library: Library, config: Any, bundle: Bundle) -> None:
    """TensorRT 8 and 9: the builder chooses types, among those that are allowed here."""
    precision = bundle.manifest.precision
    if precision == "fp16":
        config.set_flag(library.module.BuilderFlag.FP16)
        config.set_flag(library.module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    elif precision != "fp32":
        raise EngineError(
            f"TensorRT {library.version} cannot be held to the precision {precision}: "
            "use TensorRT 10 or newer, or an fp32 or fp16 bundle"
        )


def _timings(
    config: trt.IBuilderConfig, options: BuildOptions, library: Library
) -> trt.ITimingCache | None:
    """The kernel timings of earlier builds, set for this one. TensorRT-RTX has none."""
    if options.timing_cache is None or library.flavour == "tensorrt-rtx":
        return None
    timings = config.create_timing_cache(read_checked(options.timing_cache, _TIMINGS))
    config.set_timing_cache(timings, ignore_mismatch=False)
    return timings


def _count_attentions(library: Library, network: trt.INetworkDefinition) -> int:
    """Attentions in a network: whole nodes (opset 23), and softmaxes over more than a batch.

    A whole node for which the library has no fused kernel may be taken apart: without that, it
    refuses the graph. The report says how many were fused.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.module
    whole = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    count = 0
    for index in range(network.num_layers):
        layer: Any = network.get_layer(index)
        if layer.type == trt.LayerType.SOFTMAX:
            count += len(layer.get_input(0).shape) > 2  # the classes' own is (B,C)
        elif whole is not None and layer.type == whole:
            layer.__class__ = getattr(trt, "IAttentionInputLayer")  # noqa: B009 - not in the stubs
            layer.attention.decomposable = True
            count += 1
    return count
