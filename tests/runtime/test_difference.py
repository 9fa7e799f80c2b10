"""Why one class and not another: explanations, files, command line and server; and which GPU."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitcx
from tests.tiny_bundle import random_picture, write_tiny_bundle
from vitcx.cli import main
from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.targets import with_against

pytest.importorskip("onnx", reason="the bundle is written with it")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("difference") / "bundle").path


@pytest.fixture(scope="module")
def explainer(bundle: Path) -> Iterator[Explainer]:
    with vitcx.load(bundle, engine="onnxruntime", threads=1) as explainer:
        yield explainer


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(random_picture(4)).save(path)
    return path


def test_maps_and_impacts_are_differences(explainer: Explainer) -> None:
    both = explainer.explain(random_picture(4), [3, 1, 0])
    found = both.minus(1)
    assert (found.targets, found.against) == ((3, 0), (1, both.target_names[1]))
    np.testing.assert_array_equal(found.saliency[0], both.contrast(0, 1))
    np.testing.assert_array_equal(found.saliency[1], both.contrast(2, 1))
    np.testing.assert_allclose(found.impacts[1], both.impacts[2] - both.impacts[1], rtol=1e-6)
    assert found.title() == f"{both.title(0)}, not {both.title(1)}"
    against = found.summary()["against"]
    assert against == {
        "index": 1,
        "name": both.target_names[1],
        "probability": pytest.approx(both.probabilities[1]),
    }
    assert found.arrays()["against"] == 1
    assert "against" not in both.summary()
    assert "against" not in both.arrays()


@pytest.mark.parametrize("targets", [[2], [2, 2]])
def test_a_class_is_not_held_against_itself(explainer: Explainer, targets: list[int]) -> None:
    with pytest.raises(InputError, match="are the same"):
        explainer.explain(random_picture(4), targets).minus()


def test_what_is_held_against_is_one_class() -> None:
    assert with_against(None, "dog") == ["top1", "dog"]
    assert with_against("cat", 3) == ["cat", 3]
    assert with_against(["cat", 2], "top1") == ["cat", 2, "top1"]
    for several in ("top2", ["cat"], ["cat", "dog"], []):
        with pytest.raises(InputError, match="expected one class"):
            with_against("cat", several)


def test_on_the_command_line(
    bundle: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["explain", str(picture), "--bundle", str(bundle), "--out", str(out)]
    arguments += ["--engine", "onnxruntime", "--threads", "1"]
    assert main([*arguments, "--target", "index:3", "--against", "index:1", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert ([t["index"] for t in summary["targets"]], summary["against"]["index"]) == ([3], 1)
    assert summary["provenance"]["teams_graph"] == "none in the bundle"
    with np.load(out / "photo.npz") as arrays:
        difference = arrays["saliency"]
    assert main([*arguments, "--target", "index:3", "--target", "index:1"]) == 0
    with np.load(out / "photo.npz") as arrays:
        np.testing.assert_array_equal(difference[0], arrays["saliency"][0] - arrays["saliency"][1])
    capsys.readouterr()
    for wrong, words in (
        (["--against", "top1"], "are the same"),
        (["--against", "top3"], "expected one class"),
        (["--against", "index:99"], "target 99 does not exist"),
        (["--device", "0"], "device is 0 and the engine 'onnxruntime' runs on the CPU"),
        (["--device", "-1"], "--device"),
    ):
        assert main([*arguments, *wrong]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert "Traceback" not in said


def test_in_the_server(explainer: Explainer, picture: Path) -> None:
    pytest.importorskip("msgspec", reason="needs the extra 'serve'")
    from vitcx.serving.answers import as_json
    from vitcx.serving.limits import Limits
    from vitcx.serving.reading import read_asked

    def ask(**fields: Any) -> dict[str, Any]:
        image = base64.b64encode(picture.read_bytes()).decode()
        body = json.dumps({"image": image, **fields}).encode()
        asked = read_asked(body, "application/json", explainer, Limits())
        return as_json(next(explainer.explain_requests([asked.request])), asked)

    answer = ask(targets=3, against=1)
    assert ([t["index"] for t in answer["targets"]], answer["against"]["index"]) == ([3], 1)
    both = ask(targets=[3, 1])
    first, second = (np.array(target["impacts"]) for target in both["targets"])
    np.testing.assert_allclose(answer["targets"][0]["impacts"], first - second, atol=2e-7)
    with pytest.raises(InputError, match="are the same"):
        ask(targets=[1], against=1)
    with pytest.raises(InputError, match="expected one class"):
        ask(targets=1, against=["index:2", 3])


def test_ray_gives_its_workers_their_gpus(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra 'dataset'")
    arguments = ["dataset", str(picture), "--out", str(tmp_path / "out"), "--ray", "--device", "1"]
    assert main(arguments) == 2
    assert "leave --device out" in capsys.readouterr().err
