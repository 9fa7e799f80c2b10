"""TensorRT-RTX builds plans on a machine without a GPU: a small graph, and every refusal."""

from __future__ import annotations

import dataclasses
import logging
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx'")
onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")

from tests.tiny_bundle import SIZE, write_tiny_bundle  # noqa: E402
from vitcx.runtime.bundle import Bundle  # noqa: E402
from vitcx.runtime.engines.tensorrt import library as tensorrt_library  # noqa: E402
from vitcx.runtime.engines.tensorrt import plan as tensorrt_plan  # noqa: E402
from vitcx.runtime.engines.tensorrt.build_options import BuildOptions  # noqa: E402
from vitcx.runtime.engines.tensorrt.builder import build_plan  # noqa: E402
from vitcx.runtime.engines.tensorrt.capabilities import supported_capabilities  # noqa: E402
from vitcx.runtime.engines.tensorrt.library import Library, find_library  # noqa: E402
from vitcx.runtime.engines.tensorrt.plan import PlanOrder, plan_for  # noqa: E402
from vitcx.runtime.engines.tensorrt.profiles import Shapes  # noqa: E402
from vitcx.runtime.errors import (  # noqa: E402
    BundleError,
    EngineError,
    InputError,
    MissingExtraError,
)

SHAPES = Shapes(encode_images=4, batch_size=6)
ADA = BuildOptions(compute_capabilities=("8.9",))
GPU = "NVIDIA RTX 4090"


@pytest.fixture(scope="module")
def library() -> Library:
    return find_library("tensorrt-rtx")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitcx" / "plans"


def with_graph(bundle: Bundle, folder: Path, content: bytes) -> Bundle:
    """`bundle` with another graph, as if it had been exported so."""
    (folder / "model.onnx").write_bytes(content)
    return Bundle(folder, bundle.manifest)


# --- the plan -------------------------------------------------------------------------------------


def test_a_plan_says_what_it_is(library: Library, bundle: Bundle) -> None:
    built = build_plan(library, bundle, SHAPES, ADA)
    # TensorRT-RTX 1.7: magic, ..., length of the whole at 16, version at 24.
    assert built.plan[:4] == b"vtrt"
    assert struct.unpack_from("<Q", built.plan, 16) == (len(built.plan),)
    version = tuple(int(part) for part in library.version.split("."))
    assert tuple(built.plan[24:28]) == version
    assert built.report.bytes == len(built.plan)
    assert built.report.targets == ("8.9",)
    assert built.report.profiles == 3
    assert built.report.seconds > 0
    assert sum(built.report.layers.values()) > 0
    assert built.report.attention_in_words() == "no attention in the graph"


def test_the_library_calls_a_plan_well_formed_and_garbage_not(
    library: Library, bundle: Bundle
) -> None:
    trt = library.module
    plan = build_plan(library, bundle, SHAPES, ADA).plan
    runtime = trt.Runtime(library.logger)
    malformed = int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    # Without a GPU nothing is valid; but only garbage is malformed.
    assert int(runtime.get_engine_validity(plan)[1]) & malformed == 0
    assert int(runtime.get_engine_validity(b"garbage" * 100)[1]) & malformed


def test_each_target_is_in_the_plan(library: Library, bundle: Bundle) -> None:
    def targets(*capabilities: str) -> int:
        options = BuildOptions(compute_capabilities=capabilities)
        return build_plan(library, bundle, SHAPES, options).plan[32]  # a bit for each

    ampere, ada, blackwell = targets("8.0"), targets("8.9"), targets("12.0")
    assert len({ampere, ada, blackwell}) == 3
    assert targets("8.9", "12.0") == ada | blackwell
    # Left to the library: all of them.
    assert targets() & (ampere | ada | blackwell) == ampere | ada | blackwell


def test_the_profiles_of_a_dynamic_batch(
    library: Library, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    real = library.module.Builder

    class Spy(real):  # type: ignore[misc, valid-type]
        def build_serialized_network(self, network: Any, config: Any) -> Any:
            seen.append(config.num_optimization_profiles)
            seen.append(config.get_flag(library.module.BuilderFlag.TF32))
            seen.append(config.get_memory_pool_limit(library.module.MemoryPoolType.WORKSPACE))
            seen.append(tuple(network.get_input(0).shape))
            # With it, version 1.7.1 crashes where the encoder's batch varies (docs/tensorrt.md).
            seen.append(config.get_flag(library.module.BuilderFlag.REQUIRE_USER_ALLOCATION))
            return super().build_serialized_network(network, config)

        def create_optimization_profile(self) -> Any:
            profile = super().create_optimization_profile()
            profiles.append(profile)
            return profile

    profiles: list[Any] = []
    monkeypatch.setattr(library.module, "Builder", Spy)
    options = BuildOptions(compute_capabilities=("8.9",), workspace_bytes=1 << 28)
    build_plan(library, bundle, SHAPES, options)
    assert seen == [3, False, 1 << 28, (-1, 3, SIZE, SIZE), False]
    ranges = [[tuple(shape) for shape in profile.get_shape("images")] for profile in profiles]
    assert ranges == [
        [(1, 3, SIZE, SIZE), (1, 3, SIZE, SIZE), (4, 3, SIZE, SIZE)],
        [(6, 3, SIZE, SIZE), (6, 3, SIZE, SIZE), (6, 3, SIZE, SIZE)],
        [(2, 3, SIZE, SIZE), (3, 3, SIZE, SIZE), (3, 3, SIZE, SIZE)],
    ]
    build_plan(library, bundle, SHAPES, BuildOptions(tf32=True, compute_capabilities=("8.9",)))
    assert seen[6] is True


def test_progress_is_told_from_start_to_end(library: Library, bundle: Bundle) -> None:
    told: list[tuple[str, int, int]] = []
    build_plan(library, bundle, SHAPES, ADA, lambda *step: told.append(step))
    phases = {phase for phase, _, _ in told}
    assert "Building engine" in phases
    for phase in phases:
        steps = [(done, total) for name, done, total in told if name == phase]
        assert steps[0][0] == 0
        assert all(0 <= done <= total for done, total in steps)
        assert steps[-1][0] == steps[-1][1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_the_report_raises_ends_the_build(
    error: type[BaseException], library: Library, bundle: Bundle
) -> None:
    calls: list[str] = []

    def stop(phase: str, done: int, total: int) -> None:
        calls.append(phase)
        raise error("enough")

    with pytest.raises(error, match="enough"):
        build_plan(library, bundle, SHAPES, ADA, stop)
    assert len(calls) == 1
    build_plan(library, bundle, SHAPES, ADA)  # the library is none the worse


# --- refusals -------------------------------------------------------------------------------------


class _Error:
    """The parser's, as TensorRT-RTX has it: with the operator and the node's name."""

    def __init__(self, number: int) -> None:
        self._number = number

    def node_operator(self) -> str:
        return "MatMulInteger"

    def node_name(self) -> str:
        return f"product_{self._number}"

    def desc(self) -> str:
        return "not supported"


def test_a_graph_of_unknown_nodes_is_refused_in_a_few_words(
    library: Library, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Parser:
        num_errors = 40

        def __init__(self, network: Any, logger: Any) -> None:
            pass

        def parse_from_file(self, path: str) -> bool:
            return False

        def get_error(self, index: int) -> Any:
            return _Error(index)

    monkeypatch.setattr(library.module, "OnnxParser", Parser)
    with pytest.raises(BundleError) as caught:
        build_plan(library, bundle, SHAPES, ADA)
    told = str(caught.value)
    assert f"does not take '{bundle.model_path}': MatMulInteger product_0: not supported;" in told
    assert told.endswith("; and 37 more")


def test_a_file_that_is_no_graph(library: Library, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"the parser of tensorrt-rtx .* does not take"):
        build_plan(library, with_graph(bundle, tmp_path, b"no graph"), SHAPES, ADA)


def test_an_operator_that_the_parser_lacks(
    library: Library, bundle: Bundle, tmp_path: Path
) -> None:
    model = onnx.load(bundle.model_path)
    model.graph.node[1].op_type = "Bernoulli"
    with pytest.raises(BundleError, match="Bernoulli"):
        build_plan(library, with_graph(bundle, tmp_path, model.SerializeToString()), SHAPES, ADA)


def test_a_graph_with_other_outputs(library: Library, bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.load(bundle.model_path)
    del model.graph.output[1]
    with pytest.raises(BundleError, match=r"gives 'probabilities' float32 \(any, 5\), and"):
        build_plan(library, with_graph(bundle, tmp_path, model.SerializeToString()), SHAPES, ADA)


def test_a_graph_whose_batch_is_fixed(library: Library, bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.load(bundle.model_path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(BundleError, match=r"takes 'images' float32 \(2, "):
        build_plan(library, with_graph(bundle, tmp_path, model.SerializeToString()), SHAPES, ADA)


def test_a_target_that_the_library_lacks(library: Library, bundle: Bundle) -> None:
    assert {"8.0", "8.9", "12.0"} <= set(supported_capabilities(library))
    with pytest.raises(EngineError, match=r"compute capability 9\.9: it has .*8\.9"):
        build_plan(library, bundle, SHAPES, BuildOptions(compute_capabilities=("9.9",)))


def test_tensorrt_cannot_build_ahead(library: Library) -> None:
    module = SimpleNamespace()
    assert supported_capabilities(Library("tensorrt", module, "10.13.0", None)) == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shapes(encode_images=0), "at least 1"),
        (lambda: Shapes(batch_size=0), "at least 1"),
        (lambda: BuildOptions(compute_capabilities=("89",)), "expected one such as 8.9"),
        (lambda: BuildOptions(workspace_bytes=0), "give at least 1"),
        (lambda: BuildOptions(optimization_level=6), "not in 0 to 5"),
        (lambda: find_library("tensorflow"), "not one of tensorrt, tensorrt-rtx"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# --- the library ----------------------------------------------------------------------------------


def test_it_is_found_once(library: Library) -> None:
    assert find_library("tensorrt-rtx") is library
    assert library.version.count(".") >= 2
    assert library.network_flags == 0


def find_with(monkeypatch: pytest.MonkeyPatch, module: Any) -> Library:
    """`find_library` of TensorRT, whose import gives `module` or raises it."""

    def import_module(name: str) -> Any:
        assert name == "tensorrt"
        if isinstance(module, Exception):
            raise module
        return module

    monkeypatch.setattr(tensorrt_library.importlib, "import_module", import_module)
    return find_library.__wrapped__("tensorrt")


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt")
    with pytest.raises(MissingExtraError, match=r"vitcx\[gpu\]"):
        find_with(monkeypatch, missing)


def test_the_stubs_alone_are_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingExtraError, match=r"vitcx\[gpu\]"):
        find_with(monkeypatch, SimpleNamespace())


@pytest.mark.parametrize(
    "error", [OSError("libnvinfer.so.10: cannot open"), ModuleNotFoundError("x", name="other")]
)
def test_a_library_that_does_not_load_says_why(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineError, match=f"does not load: {error}"):
        find_with(monkeypatch, error)


def test_networks_are_strongly_typed_in_each_versions_way() -> None:
    flags = SimpleNamespace(STRONGLY_TYPED=1)
    module = SimpleNamespace(NetworkDefinitionCreationFlag=flags)

    assert Library("tensorrt", module, "11.0.0", None).network_flags == 0
    assert Library("tensorrt", module, "10.13.0.35", None).network_flags == 2


def test_messages_reach_logging_and_whoever_listens(
    library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    severity = library.module.ILogger.Severity
    with caplog.at_level(logging.DEBUG, "vitcx"), library.heard() as messages:
        library.logger.log(severity.WARNING, "slow")
        library.logger.log(severity.VERBOSE, "layer by layer")
    library.logger.log(severity.ERROR, "later")
    assert messages == [(2, "slow"), (4, "layer by layer")]
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("WARNING", "tensorrt_rtx: slow"),
        ("ERROR", "tensorrt_rtx: later"),
    ]


def test_the_library_is_imported_when_it_is_looked_for() -> None:
    script = (
        "import sys, vitcx.runtime.engines.tensorrt.plan\n"
        "assert not {'tensorrt', 'tensorrt_rtx', 'filelock'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# --- the plan for this machine --------------------------------------------------------------------


def test_a_plan_is_built_once(
    library: Library, bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = PlanOrder(library, bundle, SHAPES, BuildOptions(), GPU, "8.9")
    first = plan_for(order)
    assert len(list(cache.glob("*.plan"))) == 1

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("built twice")

    monkeypatch.setattr(tensorrt_plan, "build_plan", refuse)
    assert plan_for(order) == first
    for change in (
        {"shapes": Shapes(4, 7)},
        {"options": BuildOptions(tf32=True)},
        {"gpu_name": "NVIDIA L4"},
        {"compute_capability": "8.6"},
    ):
        with pytest.raises(AssertionError, match="built twice"):
            plan_for(dataclasses.replace(order, **change))  # type: ignore[arg-type]


def test_the_gpus_own_capability_is_the_target(
    library: Library, bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = []
    real = tensorrt_plan.build_plan

    def spy(*arguments: Any) -> Any:
        targets.append(arguments[3].compute_capabilities)
        return real(*arguments)

    monkeypatch.setattr(tensorrt_plan, "build_plan", spy)
    order = PlanOrder(library, bundle, SHAPES, BuildOptions(), GPU, "8.9")
    plan_for(order)
    # A newer one than this TensorRT-RTX knows: left to the library.
    plan_for(dataclasses.replace(order, gpu_name="a GPU to come", compute_capability="99.0"))
    assert targets == [("8.9",), ()]
    # It opens no plan on one that is not in its list and older, and says so only then.
    with pytest.raises(EngineError, match=r"does not run on GPUs of .* 9\.0, only on .*8\.9"):
        plan_for(dataclasses.replace(order, gpu_name="NVIDIA H200", compute_capability="9.0"))
    assert len(targets) == 2


def test_an_error_that_becomes_an_exception_is_none_in_the_log(
    library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be dealt with: a smaller batch, another engine."""
    severity = library.module.ILogger.Severity

    def fail() -> None:
        with library.heard():
            library.logger.log(severity.ERROR, "no room")
            raise RuntimeError

    with caplog.at_level(logging.DEBUG, "vitcx"), pytest.raises(RuntimeError):
        fail()
    assert [r.levelname for r in caplog.records] == ["DEBUG"]
    caplog.clear()
    with library.heard():
        library.logger.log(severity.ERROR, "no timings")
    told = [r.message for r in caplog.records if r.levelname == "ERROR"]
    assert told == ["tensorrt_rtx: no timings"]
