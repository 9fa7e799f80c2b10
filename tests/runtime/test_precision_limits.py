"""A reduced precision that costs too much is refused, with the figure and its limit."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from tests.tiny_bundle import write_tiny_bundle
from vitcx.runtime.bundle import write_manifest
from vitcx.runtime.errors import BundleError
from vitcx.runtime.explainer import load
from vitcx.runtime.manifest import Manifest
from vitcx.runtime.precision_limits import LIMITS, check_precision

pytest.importorskip("onnx", reason="needs the extra 'export'")

# Each at its limit exactly, which is allowed.
FIGURES = {limit.figure: limit.bound for limit in LIMITS} | {"images": 20.0}


@pytest.fixture
def exact(tmp_path: Path) -> Manifest:
    return write_tiny_bundle(tmp_path / "bundle").manifest


def test_float32_needs_no_figures(exact: Manifest) -> None:
    check_precision(exact)


def test_figures_at_the_limits_pass(exact: Manifest) -> None:
    check_precision(dataclasses.replace(exact, precision="int8", precision_figures=FIGURES))


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.figure)
@pytest.mark.parametrize("worse", [0.001, float("nan")])
def test_a_figure_beyond_its_limit_is_named(exact: Manifest, limit, worse: float) -> None:
    beyond = limit.bound - worse if limit.is_least else limit.bound + worse
    figures = FIGURES | {limit.figure: beyond}
    manifest = dataclasses.replace(exact, precision="int8", precision_figures=figures)
    with pytest.raises(BundleError) as caught:
        check_precision(manifest)
    said = str(caught.value)
    for part in ("int8 is too far from fp32", limit.figure, f"{limit.bound:g}", "20 pictures"):
        assert part in said
    assert "--allow-imprecise" in said


def test_no_figures_are_refused_and_can_be_allowed(
    exact: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "bundle"
    write_manifest(folder, dataclasses.replace(exact, precision="fp16"))
    with pytest.raises(BundleError, match=r"does not say how far .* lacks the figure top1"):
        load(folder)
    with caplog.at_level(logging.WARNING, "vitcx"), load(folder, allow_imprecise=True) as explainer:
        assert explainer.manifest.precision == "fp16"
    assert "loaded all the same" in caplog.text


def test_a_manifest_from_before_the_figures_is_read(exact: Manifest) -> None:
    values = json.loads(exact.to_json())
    del values["precision_figures"]
    assert Manifest.from_json(json.dumps(values)) == exact
    with_figures = dataclasses.replace(exact, precision="int8", precision_figures=FIGURES)
    assert Manifest.from_json(with_figures.to_json()) == with_figures
