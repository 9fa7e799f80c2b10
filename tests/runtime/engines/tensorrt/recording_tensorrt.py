"""A stand-in for the part of TensorRT that a session uses, that computes and keeps a record.

Its engine is ONNX Runtime on the bundle's graph. A forward pass reads its input from the address
that was bound, and writes its outputs there: on `fake_cuda`, or on an emulated driver, whose memory
is the host's. What
TensorRT would answer with False, None and a line in its log, so does this; what would corrupt
memory there fails an assertion here. That names and parameters are TensorRT's own is tested.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
import threading
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import onnxruntime as ort

from tests.kernels.gpu import fake_cuda
from vitcx.runtime.engines.tensorrt import library as tensorrt_library
from vitcx.runtime.engines.tensorrt import plan as tensorrt_plan
from vitcx.runtime.engines.tensorrt.builder import BuiltPlan
from vitcx.runtime.engines.tensorrt.interface import expected_interface
from vitcx.runtime.engines.tensorrt.plan_report import PlanReport

SCRATCH = {0: 4096, 1: 8192, 2: 6144}  # bytes of each profile


def write_plan(library, bundle, shapes, **changes):
    """What stands for a plan: JSON, with what a test wants to be other than it should."""
    session = ort.InferenceSession(str(bundle.model_path), providers=["CPUExecutionProvider"])
    wanted = {tensor.name for tensor in expected_interface(library, bundle).outputs}
    tensors = {
        tensor.name: [
            mode,
            {"tensor(float)": "FLOAT", "tensor(int64)": "INT64"}[tensor.type],
            [size if isinstance(size, int) else -1 for size in tensor.shape],
        ]
        for mode, found in (("INPUT", session.get_inputs()), ("OUTPUT", session.get_outputs()))
        for tensor in found
        if mode == "INPUT" or tensor.name in wanted
    }
    token_shape = tuple(tensors["tokens"][2][1:]) if "tokens" in tensors else ()
    plan = {
        "model": str(bundle.model_path),
        "tensors": tensors,
        "profiles": [shapes.ranges(name, bundle.manifest, token_shape) for name in shapes.profiles],
        **changes,
    }
    return json.dumps(plan).encode()


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self):
        pass

    def log(self, severity, msg):
        raise NotImplementedError


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT64 = 8


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class IRuntimeCache:
    """Its bytes are the numbers of the profiles whose kernels it has."""

    def __init__(self, record):
        self._record = record
        self.profiles = set()

    def serialize(self):
        return bytes(sorted(self.profiles))

    def deserialize(self, blob):
        if self._record.refuse_caches:
            return False
        self.profiles |= set(blob)
        return True


class Record:
    """What was asked of the library, and what it is told to refuse."""

    def __init__(self, device=fake_cuda):
        self.device = device  # with `queue` and `is_capturing`
        self.contexts = []
        self.passes = []  # (context, rows, stream handle, thread), as they run
        self.built = []  # the shapes of each plan that was built
        self.refuse_plans = 0  # so many are not read
        self.refuse_contexts = None  # the line in the log, of each context asked for
        self.refuse_passes = None
        self.refuse_capture = None
        self.capturable = True  # what TensorRT-RTX says of its contexts
        self.compiled = []  # by TensorRT-RTX, for each context: its profile
        self.refuse_caches = False  # of kernels, as those of another driver
        self.changes = {}  # of `write_plan`
        self.before_pass = lambda: None


class IRuntimeConfig:
    def __init__(self, record):
        self._record = record
        self.cache = None
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )
        self.strategy = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return IRuntimeCache(self._record)

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class ICudaEngine:
    def __init__(self, plan, logger, record):
        self._plan, self._logger, self._record = plan, logger, record
        self._session = ort.InferenceSession(plan["model"], providers=["CPUExecutionProvider"])
        self.num_io_tensors = len(plan["tensors"])
        self.num_optimization_profiles = len(plan["profiles"])
        self.inputs = [name for name, (mode, *_) in plan["tensors"].items() if mode == "INPUT"]

    def get_tensor_name(self, index):
        return list(self._plan["tensors"])[index]

    def get_tensor_mode(self, name):
        return TensorIOMode[self._plan["tensors"][name][0]]

    def get_tensor_dtype(self, name):
        return DataType[self._plan["tensors"][name][1]]

    def _dtype(self, name):
        return self._plan["tensors"][name][1]

    def get_tensor_shape(self, name):
        return tuple(self._plan["tensors"][name][2])

    def get_tensor_profile_shape(self, name, profile_index):
        return [tuple(dims) for dims in self._plan["profiles"][profile_index][name]]

    def get_device_memory_size_for_profile_v2(self, profile_index):
        return SCRATCH[profile_index]

    def create_runtime_config(self):
        return IRuntimeConfig(self._record)

    def create_execution_context(self, strategy=None):
        """The real one is overloaded: a strategy, or a runtime configuration."""
        if self._record.refuse_contexts is not None:
            self._logger.log(ILogger.Severity.ERROR, self._record.refuse_contexts)
            return None
        context = IExecutionContext(self, strategy)
        self._record.contexts.append(context)
        return context


class IExecutionContext:
    def __init__(self, engine, strategy):
        self._engine, self._record = engine, engine._record
        self.config = strategy if isinstance(strategy, IRuntimeConfig) else None
        self._managed = getattr(strategy, "strategy", strategy) == (
            ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self.profile = 0
        self.shapes = {}
        self.addresses = {}
        self._memory = (0, 0)
        self._busy = threading.Lock()

    def set_optimization_profile_async(self, profile_index, stream_handle):
        assert stream_handle > 2, "on a default stream"
        self.profile, self.shapes, self._memory = profile_index, {}, (0, 0)
        known = 0 <= profile_index < self._engine.num_optimization_profiles
        if known and self.config is not None and profile_index not in self.config.cache.profiles:
            # TensorRT-RTX compiles here, and looks in no cache but what was read into this one.
            self._record.compiled.append(profile_index)
            self.config.cache.profiles.add(profile_index)
        return known

    def set_device_memory(self, memory, size):
        assert self._managed
        assert memory % 256 == 0
        self._memory = (memory, size)

    def set_tensor_address(self, name, memory):
        assert memory % 256 == 0
        self.addresses[name] = memory
        return name in self._engine._plan["tensors"]

    def set_input_shape(self, name, shape):
        least, _, most = self._engine.get_tensor_profile_shape(name, self.profile)
        if not all(low <= n <= high for low, n, high in zip(least, shape, most, strict=True)):
            self._log(f"profile {self.profile} does not take {shape}")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self):
        return [name for name in self._engine.inputs if name not in self.shapes]

    def is_stream_capturable(self, stream):
        """TensorRT-RTX's alone; it depends on all that a pass needs, so that is set before."""
        assert stream > 2, "on a default stream"
        assert self.config is not None
        assert not self.infer_shapes()
        assert self._memory[1] >= SCRATCH[self.profile]
        return self._record.capturable

    def execute_async_v3(self, stream_handle):
        assert stream_handle > 2, "on a default stream"
        assert not self.infer_shapes()
        assert set(self.addresses) == set(self._engine._plan["tensors"])
        assert self._memory[1] >= (SCRATCH[self.profile] if self._managed else 0)
        capturing = self._record.device.is_capturing(stream_handle)
        refusal = self._record.refuse_capture if capturing else self._record.refuse_passes
        if refusal is not None:
            self._log(refusal)
            return False
        state = (dict(self.shapes), dict(self.addresses), stream_handle)
        self._record.device.queue(stream_handle, lambda: self._run(*state))
        return True

    def _run(self, shapes, addresses, stream_handle):
        assert self._busy.acquire(blocking=False), "two threads at once"
        try:
            self._record.before_pass()
            rows = shapes[self._engine.inputs[-1]][0]
            self._record.passes.append((self, rows, stream_handle, threading.get_ident()))
            feeds = {
                name: _at(addresses[name], shape, self._engine._dtype(name)).copy()
                for name, shape in shapes.items()
            }
            names = [name for name in addresses if name not in shapes]
            outputs = self._engine._session.run(names, feeds)
            for name, value in zip(names, outputs, strict=True):
                _at(addresses[name], value.shape)[...] = value
        finally:
            self._busy.release()

    def _log(self, text):
        self._engine._logger.log(ILogger.Severity.ERROR, text)


def _at(address, shape, dtype="FLOAT"):
    kind = {"FLOAT": ctypes.c_float, "INT64": ctypes.c_int64}[dtype] * int(np.prod(shape))
    return np.ctypeslib.as_array(kind.from_address(address)).reshape(shape)


def install(monkeypatch, tmp_path, flavour="tensorrt", old=False, device=fake_cuda):
    """Put the stand-in where the library of `flavour` is imported from; returns its `Record`.

    `old` is TensorRT 8.6, which cannot say the memory of one profile.
    """
    record = Record(device)

    class Runtime:
        def __init__(self, logger):
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine):
            if record.refuse_plans:
                record.refuse_plans -= 1
                self._logger.log(ILogger.Severity.ERROR, "Serialization assertion failed")
                return None
            kind = type("Old", (ICudaEngine,), {"get_device_memory_size_for_profile_v2": None})
            return (kind if old else ICudaEngine)(
                json.loads(serialized_engine), self._logger, record
            )

    name = tensorrt_library.FLAVOURS[flavour][0]
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # who looks for the module asks for this
    module.__version__ = "8.6.0" if old else "10.13.0.35"
    module.Builder = object  # what tells a library from a folder of stubs
    module.Runtime = Runtime
    kinds = [ILogger, DataType, TensorIOMode]
    if not old:
        kinds += [ExecutionContextAllocationStrategy]
    if flavour == "tensorrt-rtx":
        kinds += [CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy]
    for kind in kinds:
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, name, module)
    tensorrt_library.find_library.cache_clear()

    def build(library, bundle, shapes, options, report=None):
        record.built.append(shapes)
        plan = write_plan(library, bundle, shapes, **record.changes)
        return BuiltPlan(plan, PlanReport("stand-in", (), 0.0, len(plan), 2, 0))

    monkeypatch.setattr(tensorrt_plan, "build_plan", build)
    cache = tmp_path / "plans"
    for user in ("plan_cache", "plan"):
        monkeypatch.setattr(f"vitcx.runtime.engines.tensorrt.{user}.cache_directory", lambda: cache)
    return record
