"""`vitcx evaluate` and `vitcx bench`, in process, with a session of known answers."""

import json

import pytest

from vitcx.cli import main
from vitcx.commands import bench, evaluate
from vitcx.runtime.errors import EngineError


@pytest.fixture
def pictures(tmp_path, picture):
    import numpy as np
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(folder / name)
    (tmp_path / "boxes.csv").write_text(
        "file,class_index,x0,y0,x1,y1\na.png,1,15,10,25,20\nb.png,2,8,2,12,6\n"
    )
    return folder


@pytest.fixture
def known_bundle(monkeypatch, explainer):
    for module in (evaluate, bench):
        monkeypatch.setattr(module, "load", lambda *arguments: explainer)


@pytest.mark.usefixtures("known_bundle")
def test_evaluate_prints_a_table_and_keeps_its_figures(tmp_path, pictures, capsys):
    out = tmp_path / "out"
    arguments = ["evaluate", str(pictures), "--annotations", str(tmp_path / "boxes.csv")]
    arguments += ["--explain-label", "--squash", "--steps", "4", "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "random-order" in printed
    assert "the middle hits" in printed
    report = json.loads((out / "summary.json").read_text())
    assert report["methods"]["vit-cx"]["images"] == 2
    assert len((out / "records.jsonl").read_text().splitlines()) == 5

    assert main([*arguments, "--json"]) == 0  # resumed: nothing is measured again
    assert json.loads(capsys.readouterr().out)["methods"] == report["methods"]
    assert len((out / "records.jsonl").read_text().splitlines()) == 5


@pytest.mark.usefixtures("known_bundle")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "lime"], "there is no method or preset 'lime'"),
        (["--method", "vit-cx:sigma=3"], "setting=value"),
        (["--explain-label"], "needs --annotations"),
        (["--steps", "0"], "steps is 0"),
        (["--annotations", "none.csv"], "cannot read 'none.csv'"),
    ],
)
def test_evaluate_says_in_a_line_what_is_wrong(pictures, capsys, more, message):
    assert main(["evaluate", str(pictures), *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("known_bundle")
def test_evaluate_without_pictures_needs_the_demo_bundle(capsys):
    assert main(["evaluate"]) == 2
    assert "give pictures" in capsys.readouterr().err


@pytest.mark.usefixtures("known_bundle")
def test_bench_ends_with_json(pictures, capsys, tmp_path):
    out = tmp_path / "bench.json"
    assert main(["bench", str(pictures / "a.png"), "--quick", "--out", str(out)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads(out.read_text())
    assert len(last["results"]) == 2
    for row in last["results"].values():
        assert row["masks"] >= 1
        assert len(row["samples"]) == 1
        assert 0 <= row["stages"]["outside"] <= 1


def test_bench_leaves_out_an_engine_that_cannot_run_and_says_why(monkeypatch, capsys, explainer):
    def load(bundle, engine, *arguments):
        if engine == "openvino-bf16":
            raise EngineError("the CPU does not compute in bfloat16")
        return explainer

    monkeypatch.setattr(bench, "load", load)
    engines = ["--engine", "openvino-bf16", "--engine", "auto"]
    assert main(["bench", "--quick", *engines]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "left out: demo on openvino-bf16: the CPU does not compute in bfloat16" in lines
    assert json.loads(lines[-1])["left_out"].keys() == {"demo on openvino-bf16"}

    assert main(["bench", "--quick", *engines[:2]]) == 2
    assert "the CPU does not compute in bfloat16" in capsys.readouterr().err
