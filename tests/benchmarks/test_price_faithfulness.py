"""Price against faithfulness, on the embedded model's scenes; the picture, on made-up records."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("onnxruntime", reason="needs the extra 'cpu'")
pytest.importorskip("matplotlib", reason="needs the extra 'plot'")

from benchmarks import price_faithfulness, price_picture
from benchmarks.methods import parse_method
from benchmarks.price_picture import draw
from benchmarks.price_report import keep_common, summarise
from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import Explainer


def run(out: Path, *words: str, code: int = 0) -> Any:
    fixed = ["--bundle", "demo", "--steps", "2", "--road-steps", "2", "--threads", "1"]
    result = CliRunner().invoke(price_faithfulness.main, [*fixed, "--out", str(out), *words])
    assert result.exit_code == code, result.output
    return json.loads(result.output.splitlines()[-1]) if code == 0 else result.output


def methods(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--method", text)]


def test_a_run_goes_on_with_more_pictures_methods_and_canvases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explained: list[Any] = []
    plain = Explainer.explain

    def explain(self: Explainer, image: Any, target: Any, **settings: Any) -> Any:
        explained.append(settings)
        return plain(self, image, target, **settings)

    monkeypatch.setattr(Explainer, "explain", explain)
    monkeypatch.setattr(price_picture, "PRICES", {"seconds": "seconds"})
    chosen = methods("ViT-CX", "quick=vit-cx:estimator=fast", "random-order")
    first = run(tmp_path, "--limit", "1", "--canvas", "zero", *chosen)
    found = first["models"]["demo"]["methods"]
    assert list(found) == ["ViT-CX", "quick", "random-order"]
    assert found["ViT-CX"]["passes"] == 2 * found["quick"]["passes"] - 1
    assert found["random-order"]["passes"] == 0
    assert found["ViT-CX"]["minus_reference"]["zero"]["mean"] == 0
    assert len(explained) == 4  # each method once to warm up
    lines = (tmp_path / "demo.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 3

    explained.clear()
    again = run(tmp_path, "--limit", "1", "--canvas", "zero", *chosen)
    assert again["models"] == first["models"]
    assert not explained

    # One more picture and canvas: the first picture is asked about for the new canvas alone.
    more = run(tmp_path, "--limit", "2", "--canvas", "zero", "--canvas", "road", *chosen)
    assert (tmp_path / "demo.jsonl").read_text().splitlines()[:4] == lines
    row = more["models"]["demo"]["methods"]["quick"]
    assert row["images"] == 2
    assert row["srg"].keys() == {"zero", "road"}
    assert row["minus_reference"]["road"]["count"] == 2
    kept = [json.loads(line) for line in (tmp_path / "demo.jsonl").read_text().splitlines()[1:]]
    assert len({line["key"] for line in kept}) == len(kept) == 3 * 2 * 2
    for name in more["pictures"]:
        with Image.open(tmp_path / name) as drawn:
            assert np.asarray(drawn).std() > 0
    assert json.loads((tmp_path / "price_faithfulness.json").read_text()) == more

    explained.clear()
    only = run(tmp_path, "--report", "--limit", "2", *chosen, "--method", "Grad-CAM")
    assert not explained
    assert only["models"]["demo"]["methods"].keys() == found.keys()


def test_methods_of_torch_take_part_and_those_that_lack_something_are_named(
    tmp_path: Path,
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    chosen = methods("CGW2", "authors' code", "ViT Shapley")
    report = run(tmp_path, "--limit", "1", "--canvas", "blur", *chosen)
    found = report["models"]["demo"]
    assert found["methods"].keys() == {"CGW2"}
    assert found["methods"]["CGW2"]["passes"] == 2
    assert found["left_out"].keys() == {"authors' code", "ViT Shapley"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "LIME"], "there is no method or preset 'LIME'"),
        (["--method", "TAM", "--method", "x=TAM"], "same method"),
        (["--reference", "TAM", "--method", "ViT-CX"], "'TAM' is no label"),
        (["--bundle", "folder"], "give IMAGES"),
        (["--checkpoint", "a"], "1 --checkpoint for 0 --bundle"),
    ],
)
def test_bad_usage_is_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    output = run(tmp_path / "out", *words, code=2)
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "out").exists()


def test_a_label_comes_before_the_method() -> None:
    assert parse_method("TAM") == ("TAM", "TAM")
    assert parse_method("vit-cx:estimator=fast") == ("vit-cx:estimator=fast",) * 2
    assert parse_method("q=vit-cx:estimator=fast") == ("q", "vit-cx:estimator=fast")
    with pytest.raises(InputError, match="LABEL=METHOD"):
        parse_method("=TAM")


def test_differences_are_over_the_pictures_that_both_have() -> None:
    def line(method: str, image: str, srg: float) -> dict[str, Any]:
        figures = {"insertion": srg, "deletion": 0.0, "passes": 5, "seconds": 1.0}
        return {"method": method, "canvas": "zero", "image": image, "srg": srg, **figures}

    lines = [line("a", "x", 0.5), line("a", "y", 0.1), line("b", "y", 0.3), line("b", "z", 0.9)]
    found = summarise(lines, {"a": "A", "b": "B"}, "A")
    assert found["B"]["minus_reference"]["zero"]["count"] == 1
    assert found["B"]["minus_reference"]["zero"]["mean"] == pytest.approx(0.2)
    assert found["A"]["srg"]["zero"]["mean"] == pytest.approx(0.3)


def test_common_are_the_pictures_of_every_method_and_canvas() -> None:
    have = {("a", "zero"): "xyz", ("a", "blur"): "xy", ("b", "zero"): "yx", ("b", "blur"): "yz"}
    records = [
        {"method": method, "canvas": canvas, "image": image}
        for (method, canvas), images in have.items()
        for image in images
    ]
    kept = keep_common(records)
    assert {record["image"] for record in kept} == {"y"}
    assert len(kept) == 4
    assert keep_common([]) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_labels_cover_neither_each_other_nor_a_point(theme: str) -> None:
    rng = np.random.default_rng(0)

    def row(passes: float, srg: float) -> dict[str, Any]:
        around = {"mean": srg, "low": srg - 0.03, "high": srg + 0.03}
        return {"passes": passes, "seconds": passes / 50, "srg": {"zero": around}}

    ours = {f"preset {i}": row(13 * 2.5**i, 0.3 + 0.03 * i) for i in range(4)}
    others = {
        name: row(float(rng.choice([1, 2, 2, 4, 41, 41, 50, 1000])), float(rng.uniform(0.2, 0.4)))
        for name in ("TAM", "Grad-CAM", "CGW1", "CGW2", "Partial LRP", "Rollout", "RISE-1000",
                     "Score-CAM", "Integrated-Grad", "Smooth-Grad")
    }  # fmt: skip
    methods = {**ours, **others, "random-order": row(0, 0.0)}
    models = {"one": {"methods": methods}, "two": {"methods": methods}}
    figure, labels = draw(models, list(ours), "zero", "passes", theme)
    assert len(labels) == 2 * 14
    boxes = [text.get_window_extent() for text in labels]
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)
    for place in figure.axes:
        for found in methods.values():
            if found["passes"]:
                spot = place.transData.transform((found["passes"], found["srg"]["zero"]["mean"]))
                assert not any(box.contains(*spot) for box in boxes)
