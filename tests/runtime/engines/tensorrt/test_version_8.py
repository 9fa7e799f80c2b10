"""What TensorRT 8.6 needs otherwise: goes with `version_8`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("onnx", reason="needs the extra 'export'")

from tests.tiny_bundle import write_tiny_bundle
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.tensorrt import version_8
from vitcx.runtime.engines.tensorrt.build_options import BuildOptions
from vitcx.runtime.engines.tensorrt.builder import _configure, build_plan
from vitcx.runtime.engines.tensorrt.library import Library, find_library
from vitcx.runtime.engines.tensorrt.profiles import Shapes
from vitcx.runtime.errors import BundleError, EngineError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


def test_it_is_told_from_newer_ones() -> None:
    def found(flavour: str, version: str) -> bool:
        return version_8.is_version_8(Library(flavour, None, version, None))

    assert found("tensorrt", "8.6.0")
    assert not found("tensorrt", "10.0.1")
    assert not found("tensorrt-rtx", "1.7.1.116")


def test_its_networks_have_no_types() -> None:
    module = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0))
    assert version_8.network_flags(Library("tensorrt", module, "8.6.0", None)) == 1


def configured(bundle: Bundle, precision: str) -> list[Any]:
    """What the builder is told for a bundle of that precision."""
    told: list[Any] = []
    config = SimpleNamespace(
        set_flag=told.append,
        clear_flag=lambda flag: told.append(f"no {flag}"),
        set_preview_feature=lambda feature, on: told.append((feature, on)),
    )
    module = SimpleNamespace(
        BuilderFlag=SimpleNamespace(TF32="TF32", FP16="FP16", OBEY_PRECISION_CONSTRAINTS="OBEY"),
        ProfilingVerbosity=SimpleNamespace(DETAILED=1),
        PreviewFeature=SimpleNamespace(PROFILE_SHARING_0806="sharing"),
    )
    library = Library("tensorrt", module, "8.6.0", None)
    manifest = dataclasses.replace(bundle.manifest, precision=precision)
    _configure(library, config, Bundle(bundle.path, manifest), BuildOptions())
    return told


@pytest.mark.parametrize(("precision", "flags"), [("fp32", set()), ("fp16", {"FP16", "OBEY"})])
def test_it_is_told_types_and_that_contexts_share_a_profile(
    precision: str, flags: set[str], bundle: Bundle
) -> None:
    """Without the second, 8.6 ends the process when a second thread's context takes a profile."""
    told = configured(bundle, precision)
    assert told.count(("sharing", True)) == 1
    assert set(told) == {"no TF32", ("sharing", True), *flags}


def test_a_precision_that_it_cannot_be_held_to_is_refused(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="cannot be held to the precision bf16"):
        configured(bundle, "bf16")


def as_version_8(monkeypatch: pytest.MonkeyPatch) -> Library:
    """TensorRT-RTX, taken for TensorRT 8."""
    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx'")
    library = find_library("tensorrt-rtx")
    monkeypatch.setattr(version_8, "is_version_8", lambda library: True)
    monkeypatch.setattr(version_8, "network_flags", lambda library: library.network_flags)
    monkeypatch.setattr(version_8, "configure", lambda library, config, bundle: None)
    return library


def test_it_tells_no_progress(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    options = BuildOptions(compute_capabilities=("8.9",))
    library = as_version_8(monkeypatch)
    shapes = Shapes(encode_images=4, batch_size=6)
    assert build_plan(library, bundle, shapes, options, lambda *step: calls.append(step[0])).plan
    assert calls == []


def test_its_parsers_errors_are_told_by_the_nodes_number(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = SimpleNamespace(node=lambda: 7, desc=lambda: "not supported")

    class Parser:
        num_errors = 1

        def __init__(self, *given: Any) -> None:
            pass

        def parse_from_file(self, path: str) -> bool:
            assert Path(path).exists()
            return False

        def get_error(self, index: int) -> Any:
            return error

    library = as_version_8(monkeypatch)
    monkeypatch.setattr(library.module, "OnnxParser", Parser)
    with pytest.raises(BundleError, match="node 7: not supported"):
        build_plan(library, bundle, Shapes(), BuildOptions())
