"""Builds a bundle's graph into a TensorRT plan: one engine with a few optimisation profiles.

The precision is the graph's. Profile `ENCODE` takes 1 to N images, profile `SCORE` the fixed rows
of a full batch, so that what runs most is compiled for one shape, and `SHORT` those of shorter
ones. The graph that scores teams has a plan of its own, and so has an encoder that is one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.tensorrt import version_8
from vitcx.runtime.engines.tensorrt.build_options import BuildOptions
from vitcx.runtime.engines.tensorrt.capabilities import set_targets
from vitcx.runtime.engines.tensorrt.interface import (
    expected_interface,
    interface_of_network,
)
from vitcx.runtime.engines.tensorrt.library import Library, Message, Severity
from vitcx.runtime.engines.tensorrt.plan_report import PlanReport, count_layers, each_once
from vitcx.runtime.engines.tensorrt.profiles import Shapes
from vitcx.runtime.engines.tensorrt.progress import Progress, Watch, progress_monitor
from vitcx.runtime.engines.tensorrt.timing_cache import keep_timings, use_timings
from vitcx.runtime.errors import BundleError, EngineError
from vitcx.runtime.graph_interface import Interface, check_interface, token_shape_of
from vitcx.runtime.manifest import TOKENS

if TYPE_CHECKING:
    import tensorrt as trt

# A graph of a kind that the parser does not know has a fault in each layer of it.
_MOST_REASONS = 3


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
        old = version_8.is_version_8(library)
        flags = version_8.network_flags(library) if old else library.network_flags
        network = builder.create_network(flags)
        token_shape = token_shape_of(f"'{bundle.model_path}'", _parse(library, network, bundle))
        attentions = _count_attentions(library, network)
        config = builder.create_builder_config()
        _configure(library, config, bundle, options)
        for name in shapes.profiles:
            profile = builder.create_optimization_profile()
            for tensor, dims in shapes.ranges(name, bundle.manifest, token_shape).items():
                least, best, most = (trt.Dims(list(shape)) for shape in dims)
                profile.set_shape(tensor, least, best, most)
            if config.add_optimization_profile(profile) < 0:
                rows = " to ".join(map(str, shapes.images(name)))
                raise _failure(library, f"refuses batches of {rows}", messages)
        watch = Watch(report)
        if not old:
            monitor = progress_monitor(library, watch)  # the config holds no reference of its own
            config.progress_monitor = monitor
        path = None if library.flavour == "tensorrt-rtx" else options.timing_cache
        timings = None if path is None else use_timings(config, path)
        serialized = builder.build_serialized_network(network, config)
        watch.raise_what_came()
        if serialized is None:
            targets = ", ".join(options.compute_capabilities) or "this machine's GPU"
            raise _failure(library, f"cannot build '{bundle.path}' for {targets}", messages)
        plan = bytes(memoryview(serialized))
        if path is not None and timings is not None:
            keep_timings(timings, path)
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


def _parse(library: Library, network: trt.INetworkDefinition, bundle: Bundle) -> Interface:
    """Fill the network from the bundle's graph, whose external weights lie beside it."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.module
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(bundle.model_path)):
        reasons = each_once(
            [_in_words(library, parser.get_error(i)) for i in range(parser.num_errors)]
        )
        more = len(reasons) - _MOST_REASONS
        raise BundleError(
            f"the parser of {library.flavour} {library.version} does not take "
            f"'{bundle.model_path}': {'; '.join(reasons[:_MOST_REASONS])}"
            + (f"; and {more} more" if more > 0 else "")
        )
    expected = expected_interface(library, bundle)
    if TOKENS not in [output.name for output in expected.outputs]:
        for output in [network.get_output(i) for i in range(network.num_outputs)]:
            if output.name == TOKENS:  # nobody takes them, and each output needs a buffer
                network.unmark_output(output)
    found = interface_of_network(network)
    check_interface(
        f"'{bundle.model_path}'",
        found,
        expected,
        all_sizes_known=True,
        more_outputs=False,  # each would need a buffer
    )
    return found


def _in_words(library: Library, error: Any) -> str:
    if version_8.is_version_8(library):
        return version_8.error_in_words(error)
    return f"{error.node_operator()} {error.node_name()}: {error.desc()}"


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
    if version_8.is_version_8(library):
        version_8.configure(library, config, bundle)
    if options.compute_capabilities:
        set_targets(library, config, options.compute_capabilities)


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
