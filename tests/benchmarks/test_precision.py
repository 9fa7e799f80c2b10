"""What reduced precisions cost, measured on a tiny model and pictures made up here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("torch", reason="needs the extra 'export'")
pytest.importorskip("onnxscript", reason="needs the extra 'export'")
pytest.importorskip("matplotlib", reason="needs the extra 'plot'")

from benchmarks import precision
from benchmarks.figures import main as draw_figures
from tests.export import tiny
from vitcx.export import export_model
from vitcx.runtime.bundle import Bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_model(tiny.make("vit"), tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(2):
        coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((80, 70)).save(folder / f"{number}.png")
    return folder


def run(command: object, *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(a) for a in arguments])  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result.output.splitlines()[-1]


def test_maps_are_compared_and_a_run_goes_on(
    bundle: Bundle, pictures: Path, tmp_path: Path
) -> None:
    lines, out = tmp_path / "lines.jsonl", tmp_path / "out.json"
    arguments = [pictures, "--bundle", bundle.path, "--records", lines, "--out", out]
    first = json.loads(run(precision.main, *arguments, "--limit", 1))
    assert set(first["precisions"]) == {"fp16", "bf16", "int8"}
    report = json.loads(run(precision.main, *arguments))
    assert json.loads(out.read_text()) == report
    assert report["encoder"] == "fp32"
    assert report["machine"]["cores"] >= 1
    assert len(lines.read_text().splitlines()) == 1 + 2 * 3
    for figures in report["precisions"].values():
        assert figures["images"] == 2
        assert figures["probabilities_max_abs"] > 0
        # Masks of float32, scored with small errors.
        assert figures["rank_correlation_min"] > 0.9


def test_forward_passes_take_turns(bundle: Bundle, pictures: Path) -> None:
    arguments = ["--bundle", bundle.path, "--speed", "--batch-size", 2, "--rounds", 2]
    report = json.loads(run(precision.main, pictures, *arguments))
    assert set(report["speed"]) == {"fp32", "fp16", "int8"}  # no bfloat16 on this engine
    assert all(len(row["seconds"]) == 2 for row in report["speed"].values())
    assert report["speed"]["fp32"]["times_faster"] == 1


def test_an_engine_is_compared_on_the_float32_bundle_itself(bundle: Bundle, pictures: Path) -> None:
    pytest.importorskip("openvino")
    report = json.loads(
        run(precision.main, pictures, "--bundle", bundle.path, "--engine", "openvino")
    )
    assert set(report["precisions"]) == {"openvino"}
    assert report["precisions"]["openvino"]["rank_correlation_min"] > 0.999
    assert "openvino" in report["versions"]


def test_the_picture_has_maps_with_both_kinds_of_masks(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    run(draw_figures, "--bundle", bundle.path, "--precisions", "--out", tmp_path)
    with Image.open(tmp_path / "precisions.jpg") as drawn:
        assert drawn.width > drawn.height > 300
