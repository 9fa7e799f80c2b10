"""`vitcx evaluate` and `vitcx bench`, in process, with a session of known answers."""

import json
import shutil
import tarfile
import weakref

import pytest

from vitcx.cli import main
from vitcx.commands import bench, evaluate
from vitcx.evaluation.boxes import Annotation
from vitcx.evaluation.metrics import METRICS
from vitcx.evaluation.subjects import list_pictures
from vitcx.runtime.errors import EngineError, InputError
from vitcx.runtime.explainer import Explainer
from vitcx.sources.items import Item
from vitcx.sources.listing import list_all


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
def known_bundle(monkeypatch, explainer, session):
    def load(*arguments):
        return Explainer(explainer.bundle, type(session)())  # each run closes its own

    for module in (evaluate, bench):
        monkeypatch.setattr(module, "load", load)


@pytest.mark.usefixtures("known_bundle")
def test_evaluate_prints_a_table_and_keeps_its_figures(tmp_path, pictures, capsys):
    out = tmp_path / "out"
    arguments = ["evaluate", str(pictures), "--annotations", str(tmp_path / "boxes.csv")]
    arguments += ["--explain-label", "--squash", "--steps", "4", "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "random-order" in printed
    assert "middle hits" in printed
    assert all(len(line) <= 80 for line in printed.splitlines())
    report = json.loads((out / "summary.json").read_text())
    assert report["methods"]["vit-cx"]["images"] == 2
    assert len((out / "records.jsonl").read_text().splitlines()) == 5

    assert main([*arguments, "--json"]) == 0  # resumed: nothing is measured again
    assert json.loads(capsys.readouterr().out)["methods"] == report["methods"]
    assert len((out / "records.jsonl").read_text().splitlines()) == 5


@pytest.mark.usefixtures("known_bundle")
def test_evaluate_measures_more_of_each_map_where_it_is_asked_to(tmp_path, pictures, capsys):
    words = ["evaluate", str(pictures), "--steps", "2", "--canvas", "road"]
    words += [word for name in METRICS for word in ("--metric", name)]
    assert main([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["methods"]
    assert METRICS.keys() <= found["vit-cx"].keys()
    assert found["vit-cx"]["seed"]["count"] == 2
    assert METRICS.keys() & found["random-order"].keys() == {"saco", "mufidelity", "sparseness"}
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in METRICS)
    assert max(map(len, printed.splitlines())) <= 80
    # Without the metrics the lines are others.
    assert main([*words[:6], "--out", str(tmp_path / "out")]) == 2
    assert "other settings" in capsys.readouterr().err


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
def test_one_unreadable_picture_is_left_out_and_said(tmp_path, pictures, capsys):
    (pictures / "bad.png").write_bytes(b"not a picture")
    (pictures / "deep" / "er").mkdir(parents=True)
    shutil.copy(pictures / "a.png", pictures / "deep" / "er" / "a.png")
    out = tmp_path / "out"
    arguments = ["evaluate", str(pictures), "--steps", "2", "--out", str(out), "--json"]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.count("bad.png' is not a picture") == 1  # not once for each method
    report = json.loads(said.out)
    assert report["failed"].keys() == {"bad.png"}
    assert {row["images"] for row in report["methods"].values()} == {3}
    lines = (out / "records.jsonl").read_text().splitlines()[1:]
    assert {json.loads(line)["image"] for line in lines} == {"a.png", "b.png", "deep/er/a.png"}
    assert main(["evaluate", str(pictures / "bad.png")]) == 2
    assert "none of 1 pictures could be read" in capsys.readouterr().err


@pytest.mark.usefixtures("known_bundle")
def test_evaluate_takes_the_lists_that_dataset_takes(tmp_path, pictures, capsys):
    lines = "path,target,x0,y0,x1,y1\npictures/a.png,bee,15,10,25,20\npictures/b.png,2,8,2,12,6\n"
    (tmp_path / "list.csv").write_text(lines, encoding="utf-8-sig")
    (tmp_path / "boxes.csv").write_text((tmp_path / "boxes.csv").read_text(), encoding="utf-8-sig")
    options = ["--squash", "--explain-label", "--steps", "2", "--json"]
    found = []
    for source in (
        [str(tmp_path / "list.csv")],
        [str(pictures / "*.png"), "--annotations", str(tmp_path / "boxes.csv")],
    ):
        assert main(["evaluate", *source, *options]) == 0
        methods = json.loads(capsys.readouterr().out)["methods"]
        found.append({name: row["difference"]["mean"] for name, row in methods.items()})
        assert all("pointing_all" in row for row in methods.values())
    assert found[0]["vit-cx"] == found[1]["vit-cx"]
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(pictures / "a.png", "a.png")
    assert main(["evaluate", str(tmp_path / "s.tar"), "--steps", "2", "--json"]) == 0


@pytest.mark.usefixtures("known_bundle")
def test_evaluate_does_not_hold_all_pictures_at_once(pictures, capsys, monkeypatch):
    for i in range(60):
        shutil.copy(pictures / "a.png", pictures / f"{i}.png")
    alive, most = weakref.WeakSet(), []
    real = evaluate.read_subjects

    def watched(*given, **options):
        for subject in real(*given, **options):
            alive.add(subject)
            most.append(len(alive))
            yield subject
            del subject

    monkeypatch.setattr(evaluate, "read_subjects", watched)
    assert main(["evaluate", str(pictures), "--steps", "2", "--json"]) == 0
    assert len(most) == 2 * 62
    assert max(most) <= 32  # eight wait for each other, and those that are on their way


def test_names_of_pictures_are_paths_where_they_must_be(tmp_path):
    (tmp_path / "l.csv").write_text(
        "path,x0,y0,x1,y1\na/1.png,0,0,1,1\na/1.png,2,2,3,3\nb.png,,,,\n"
    )
    items = list_all([tmp_path / "l.csv", tmp_path / "x" / "b.png"])
    listed = list_pictures(items, {}, ("ant", "bee"))
    assert [one.name for one in listed] == [
        "a/1.png",
        str(tmp_path / "b.png"),
        str(tmp_path / "x" / "b.png"),
    ]
    assert listed[0].known.boxes == ((0, 0, 1, 1), (2, 2, 3, 3))
    with pytest.raises(InputError, match=r"annotation of 'b\.png' fits 2 pictures"):
        list_pictures(items, {"b.png": Annotation(1)}, ("ant", "bee"))
    for target, message in (("top2", "give one class"), ("cow", "no class called")):
        with pytest.raises(InputError, match=message):
            list_pictures([Item("a.png", target)], {}, ("ant", "bee"))
    (known,) = list_pictures([Item("a.png", "bee")], {}, ("ant", "bee"), explain_label=True)
    assert known.known.class_index == 1


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
