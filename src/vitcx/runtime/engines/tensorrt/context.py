"""A TensorRT plan made to run: the engine, checked, and execution contexts on its profiles.

TensorRT's calls return None or False and log the cause: here that becomes an `EngineError` with the
log's words.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from vitcx.kernels.closing import Closing
from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.streams import Stream
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.tensorrt.interface import (
    expected_interface,
    interface_of_engine,
)
from vitcx.runtime.engines.tensorrt.library import Library, Severity
from vitcx.runtime.engines.tensorrt.plan_report import each_once
from vitcx.runtime.engines.tensorrt.profiles import Shapes
from vitcx.runtime.engines.tensorrt.runtime_cache import RuntimeCache
from vitcx.runtime.errors import EngineError
from vitcx.runtime.graph_interface import check_interface, token_shape_of

if TYPE_CHECKING:
    import tensorrt as trt

_T = TypeVar("_T")


class PlanRefused(EngineError):
    """A plan that this library and GPU do not take, or that is not made for these shapes."""


def open_plan(library: Library, plan: bytes, bundle: Bundle, shapes: Shapes) -> trt.ICudaEngine:
    """The plan's engine, with the inputs, outputs and profiles that are expected.

    Parameters
    ----------
    plan : from a source that is trusted: it is code.

    Raises
    ------
    PlanRefused
        It cannot be read, or its profiles have other shapes.
    BundleError
        The graph in it is not the manifest's.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.module
    with reasons(library, "cannot read the plan", PlanRefused):
        # Raises TypeError where the library cannot start; the log has the reason.
        engine = _given(trt.Runtime(library.logger).deserialize_cuda_engine(plan))
    graph = "the graph in the plan"
    found = interface_of_engine(trt, engine)
    check_interface(
        graph,
        found,
        expected_interface(library, bundle),
        all_sizes_known=True,
        more_outputs=False,  # each would need a buffer
    )
    if engine.num_optimization_profiles != len(shapes.profiles):
        raise PlanRefused(
            f"the plan has {engine.num_optimization_profiles} profiles, expected "
            f"{len(shapes.profiles)}"
        )
    token_shape = token_shape_of(graph, found)
    for profile, name in enumerate(shapes.profiles):
        for tensor, wanted in shapes.ranges(name, bundle.manifest, token_shape).items():
            dims = engine.get_tensor_profile_shape(tensor, profile)
            least, most = tuple(dims[0]), tuple(dims[2])
            if (least, most) != (wanted[0], wanted[2]):
                raise PlanRefused(
                    f"profile {profile} of the plan takes '{tensor}' from {least} to {most}, "
                    f"expected {wanted[0]} to {wanted[2]}"
                )
    return engine


def scratch_bytes(engine: trt.ICudaEngine, profiles: Iterable[int]) -> int | None:
    """The scratch memory that contexts on any of these profiles need, which they may share.

    None for TensorRT before 10.1: it knows only the need of all profiles together, and there each
    context allocates its own.
    """
    size_of = getattr(engine, "get_device_memory_size_for_profile_v2", None)
    return None if size_of is None else max(int(size_of(profile)) for profile in profiles)


def _given(made: _T | None) -> _T:
    if made is None:
        raise RuntimeError  # `reasons` knows why
    return made


@contextlib.contextmanager
def reasons(library: Library, what: str, kind: type[EngineError] = EngineError) -> Iterator[None]:
    """What the library does not take in here (`RuntimeError`, `TypeError`) as `kind`.

    The message is made of `what`, such as "cannot read the plan", and of what the library logged
    as an error meanwhile.
    """
    with library.heard() as messages:
        try:
            yield
        except (RuntimeError, TypeError) as error:
            if isinstance(error, EngineError):
                raise
            lines = [text for severity, text in messages if severity <= Severity.ERROR]
            own = [str(error)] if str(error) else []
            reason = "; ".join(each_once([*own, *lines])) or "its log gives no reason"
            raise kind(f"{library.flavour} {library.version} {what}: {reason}") from error


class Context(Closing):
    """An execution context on one profile. For one thread at a time; a context manager.

    Parameters
    ----------
    engine : of `open_plan`; contexts share it.
    stream : orders the setting up.
    shapes : that the engine's plan is made for.
    name : of the profile.
    runtime_cache : what was compiled for the profile, of TensorRT-RTX; None for TensorRT.
    scratch : of `scratch_bytes`; contexts whose passes are on one stream may share it. The memory
        is the caller's, and outlives this.
    one_shape : whether it always runs the same shapes.
    """

    def __init__(
        self,
        library: Library,
        engine: trt.ICudaEngine,
        stream: Stream,
        shapes: Shapes,
        name: str,
        runtime_cache: RuntimeCache | None,
        scratch: DeviceArray | None,
        *,
        one_shape: bool,
    ) -> None:
        profile = shapes.profiles.index(name)
        self._runtime_cache = runtime_cache
        self._native_cache: Any = None
        self._library = library
        self._native: trt.IExecutionContext | None = None
        with reasons(library, f"cannot open profile {profile}"):
            if runtime_cache is not None:
                config = _rtx_config(library, engine, one_shape=one_shape)
                self._native_cache = runtime_cache.begin(config)
                native = _given(engine.create_execution_context(config))
            elif scratch is not None:
                strategy = library.module.ExecutionContextAllocationStrategy.USER_MANAGED
                native = _given(engine.create_execution_context(strategy))
            else:
                native = _given(engine.create_execution_context())
            if not native.set_optimization_profile_async(profile, stream.handle):
                raise RuntimeError
            if scratch is not None:
                native.set_device_memory(scratch.pointer, scratch.nbytes)
            # The copies that the switch may have queued are done before another stream runs this.
            stream.synchronise()
        self._native = native

    def bind(self, name: str, array: DeviceArray) -> None:
        """Where a tensor lies from now on; the memory is the caller's."""
        with reasons(self._library, f"refuses the memory of '{name}'"):
            if not self.native.set_tensor_address(name, array.pointer):
                raise RuntimeError

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """The inputs' shapes from now on, within the profile's."""
        told = " and ".join(f"{name} of shape {shape}" for name, shape in shapes.items())
        with reasons(self._library, f"refuses {told}"):
            for name, shape in shapes.items():
                if not self.native.set_input_shape(name, shape):
                    raise RuntimeError
            if missing := self.native.infer_shapes():
                raise RuntimeError(f"not specified: {', '.join(missing)}")

    def enqueue(self, stream: Stream) -> None:
        """Queue a forward pass."""
        with reasons(self._library, "cannot run"):
            if not self.native.execute_async_v3(stream.handle):
                raise RuntimeError

    def can_be_captured(self, stream: Stream) -> bool:
        """Whether a pass on `stream` can become a CUDA graph, as TensorRT-RTX says beforehand.

        TensorRT does not say: there a capture is tried.
        """
        native: Any = self.native
        return bool(native.is_stream_capturable(stream.handle))

    def keep_runtime_cache(self) -> None:
        """After a pass: keep what was compiled for it."""
        if self._runtime_cache is not None:
            self._runtime_cache.keep(self._native_cache)

    @property
    def native(self) -> trt.IExecutionContext:
        """The library's context."""
        if self._native is None:
            raise EngineError("this execution context is closed")
        return self._native

    def close(self) -> None:
        """Free the context."""
        self._native = self._native_cache = None


def _rtx_config(library: Library, engine: Any, *, one_shape: bool) -> Any:
    """How TensorRT-RTX is to run a context."""
    module = library.module
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(
        module.ExecutionContextAllocationStrategy.USER_MANAGED
    )
    if one_shape:
        # It compiles kernels when it runs. The one shape of this context gets its own before the
        # first pass, and the library makes the CUDA graph: only it knows when they are in.
        config.dynamic_shapes_kernel_specialization_strategy = (
            module.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return config
