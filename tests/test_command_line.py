"""The command line as a person uses it, with the embedded model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitcx.cli import main
from vitcx.runtime import explainer
from vitcx.runtime.demo.scenes import CLASS_NAMES, FIRST_FRESH_SEED, make_scene


def vitcx(*arguments, cwd):
    """Run `vitcx` in this process and give (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    here = Path.cwd()
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in arguments])
    finally:
        os.chdir(here)
    return code, out.getvalue(), err.getvalue()


def vitcx_process(*arguments, cwd):
    """The same in a process of its own, as a person runs it: with its log, and its start."""
    done = subprocess.run(
        [sys.executable, "-m", "vitcx", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path):
    """Two scenes, a damaged picture and a normalised array."""
    for number in range(2):
        scene = make_scene(FIRST_FRESH_SEED + number, objects=1)
        Image.fromarray(scene.image).resize((300, 200)).save(tmp_path / f"scene{number}.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "scene0.png").read_bytes()[:900])
    pixels = make_scene(FIRST_FRESH_SEED, objects=1).image.astype(np.float32) / 127.5 - 1
    np.save(tmp_path / "scene.npy", pixels.transpose(2, 0, 1))
    return tmp_path


def test_one_picture_makes_three_files(folder):
    code, out, err = vitcx_process("explain", "scene0.png", "--out", "out", cwd=folder)
    assert (code, err) == (0, "")
    assert "out/scene0.png" in out
    assert sorted(p.name for p in (folder / "out").iterdir()) == [
        "scene0.json",
        "scene0.npz",
        "scene0.png",
    ]
    with Image.open(folder / "out" / "scene0.png") as overlay:
        assert overlay.width == 300
    summary = json.loads((folder / "out" / "scene0.json").read_text())
    assert summary["targets"][0]["name"] in CLASS_NAMES
    assert summary["settings"]["forward_passes"] == 2 * summary["masks"] + 1


def test_several_pictures_targets_and_json(folder):
    code, out, _ = vitcx(
        "explain", "scene0.png", "scene1.png", "--target", "heart", "--target", "3",
        "--estimator", "fast", "--json", "--out", "out", cwd=folder,
    )  # fmt: skip
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == ["scene0.png", "scene1.png"]
    for line in lines:
        assert [t["index"] for t in line["targets"]] == [CLASS_NAMES.index("heart"), 3]
        assert line["settings"]["estimator"] == "fast"
        for path in line["files"].values():
            assert (folder / path).is_file()


def test_a_picture_and_its_array_give_the_same_map(folder):
    scene = make_scene(FIRST_FRESH_SEED, objects=1)
    Image.fromarray(scene.image).save(folder / "exact.png")
    assert vitcx("explain", "exact.png", "--out", "a", cwd=folder)[0] == 0
    assert vitcx("explain", "scene.npy", "--input-npy", "--out", "b", cwd=folder)[0] == 0
    with np.load(folder / "a" / "exact.npz") as one, np.load(folder / "b" / "scene.npz") as other:
        np.testing.assert_allclose(one["saliency"], other["saliency"], atol=1e-5)


def test_folders_patterns_and_lists_are_explained(folder):
    (folder / "set" / "deep").mkdir(parents=True)
    (folder / "scene0.png").rename(folder / "set" / "one.png")
    (folder / "scene1.png").rename(folder / "set" / "deep" / "two.png")
    (folder / "set" / "list.csv").write_text("path,target\none.png,heart\ndeep/two.png,3\n")
    names = ["one.png", "two.png"]
    for source in ("set", "set/**/*.png", "set/list.csv"):
        code, out, err = vitcx(
            "explain",
            source,
            "--estimator",
            "fast",
            "--json",
            "--out",
            f"out{len(source)}",
            cwd=folder,
        )
        assert (code, err) == (0, "")
        lines = [json.loads(line) for line in out.splitlines()]
        assert sorted(Path(line["files"]["overlay"]).name for line in lines) == names
    found = {Path(line["image"]).name: line["targets"][0]["index"] for line in lines}
    assert found == {"one.png": CLASS_NAMES.index("heart"), "two.png": 3}


def test_a_folder_that_results_are_written_to_is_explained_again_without_them(folder):
    (folder / "bad.png").unlink()
    for said in ("", "vitcx: passed over 4 results of earlier runs"):
        code, _, err = vitcx(
            "explain", ".", "--estimator", "fast", "--target", "top2", "--out", ".", cwd=folder
        )
        assert code == 0
        assert err.startswith(said)
        assert bool(err) == bool(said)
    assert len(list(folder.glob("*.json"))) == 2


def test_results_beside_their_picture_do_not_replace_it(folder):
    before = (folder / "scene0.png").read_bytes()
    (folder / "scene0.json").write_text("{}")
    code, out, _ = vitcx("explain", "scene0.png", "--estimator", "fast", "--out", ".", cwd=folder)
    assert code == 0
    assert "-> scene0_2.png" in out
    assert (folder / "scene0.png").read_bytes() == before
    assert (folder / "scene0.json").read_text() == "{}"


def test_a_bundle_in_a_folder_called_demo_is_never_mistaken(folder):
    shutil.copytree(Path(explainer.__file__).parent / "demo" / "bundle", folder / "demo")
    manifest = folder / "demo" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "model_name": "mine"}))
    for bundle, model in (("demo", "vitcx_demo"), ("./demo", "mine")):
        words = ("--bundle", bundle, "--estimator", "fast", "--json", "--out", model)
        code, out, err = vitcx_process("explain", "scene0.png", *words, cwd=folder)
        assert code == 0
        assert json.loads(out)["provenance"]["model"] == model
        assert ("give './demo'" in err) == (bundle == "demo")


def test_names_with_control_characters_are_escaped(folder):
    name = "a\x1b[31mb\u202e[red].png"
    shutil.copy(folder / "scene0.png", folder / name)
    shutil.copy(folder / "bad.png", folder / f"bad{name}")
    code, out, err = vitcx(
        "explain", name, f"bad{name}", "--estimator", "fast", "--out", "o", cwd=folder
    )
    assert code == 2
    for text in (out, err):
        assert "\x1b" not in text
        assert r"a\x1b[31mb\u202e[red].png" in text
    assert len(err.splitlines()) == 2


def test_two_pictures_of_one_name_do_not_overwrite_each_other(folder):
    (folder / "sub").mkdir()
    (folder / "scene1.png").rename(folder / "sub" / "scene0.png")
    code, _, _ = vitcx(
        "explain", "scene0.png", "sub/scene0.png", "--estimator", "fast", "--out", "o", cwd=folder
    )
    assert code == 0
    assert {p.name for p in (folder / "o").glob("*.png")} == {"scene0.png", "scene0_2.png"}


def test_a_bad_picture_does_not_stop_the_others(folder):
    code, out, err = vitcx(
        "explain", "bad.png", "scene0.png", "--estimator", "fast", "--out", "out", cwd=folder
    )
    assert code == 2
    about_it, at_the_end = err.splitlines()
    assert "bad.png" in about_it
    assert at_the_end == "vitcx: 1 of 2 pictures failed: 'bad.png'"
    assert "scene0.png" in out
    assert not list((folder / "out").glob("bad*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", "missing.png", "--out", "o"], "no picture at 'missing.png'"),
        (["explain", "--out", "o"], "Missing argument"),
        (["explain", "scene0.png"], "--out"),
        (["explain", "scene0.png", "--out", "scene1.png"], "is a file"),
        (["explain", "scene0.png", "--out", "o", "--bundle", "nowhere"], "no bundle at 'nowhere'"),
        (["explain", "scene0.png", "--out", "o", "--target", "unicorn"], "no class called"),
        (["explain", "scene0.png", "--out", "o", "--target", "99"], "0 to 11"),
        (["explain", "scene0.png", "--out", "o", "--engine", "abacus"], "abacus"),
        (["explain", "scene0.png", "--out", "o", "--noise-std", "-1"], "noise_std"),
        (["explain", "scene0.png", "--out", "o", "--batch-size", "0"], "batch_size"),
        (["explain", "scene0.png", "--out", "o", "--input-npy"], "not a .npy array"),
        (["explain", "empty", "--out", "o"], "'empty' holds no pictures"),
        (["explain", "empty", "--out", "o", "--input-npy"], "'empty' holds no .npy files"),
        (["wonder"], "No such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_usage_is_one_line_and_leaves_nothing(folder, arguments, words):
    (folder / "empty").mkdir()
    code, out, err = vitcx(*arguments, cwd=folder)
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert words in err
    assert not (folder / "o").exists()


def test_an_engine_that_cannot_run_is_not_replaced_by_another(folder):
    from vitcx.runtime.engines.registry import probe_engines

    absent = [status.name for status in probe_engines() if not status.available]
    if not absent:
        pytest.skip("every engine can run here")
    code, _, err = vitcx("explain", "scene0.png", "--out", "o", "--engine", absent[0], cwd=folder)
    assert code == 2
    assert absent[0] in err
    assert not (folder / "o").exists()


def test_doctor_tells_what_runs_here_and_why_not(folder):
    code, out, _ = vitcx("doctor", cwd=folder)
    assert code == 0
    assert "'auto' takes:" in out
    report = json.loads(vitcx("doctor", "--json", cwd=folder)[1])
    assert report["engines"]["onnxruntime"]["available"]
    assert report["auto"] in report["engines"]
    for engine in report["engines"].values():
        assert engine["reason"]


def test_the_log_says_which_engine_was_taken(folder):
    code, _, err = vitcx_process(
        "-v", "explain", "scene0.png", "--estimator", "fast", "--out", "o", cwd=folder
    )
    assert code == 0
    assert "vitcx: engine " in err


def test_demo_says_where_the_result_is(folder):
    code, out, _ = vitcx("demo", "--out", "demo", "--scenes", "2", cwd=folder)
    assert code == 0
    assert f"result: {folder / 'demo' / 'demo.png'}" in out
    assert "of 3 peaks lie on the object" in out
    with Image.open(folder / "demo" / "demo.png") as sheet:
        assert sheet.width > 800


def test_the_figure(folder):
    pytest.importorskip("matplotlib")
    code, _, _ = vitcx("explain", "scene0.png", "--figure", "--out", "o", cwd=folder)
    assert code == 0
    assert (folder / "o" / "scene0.figure.png").stat().st_size > 10_000


def test_the_runtime_needs_no_torch_and_importing_does_no_work(folder):
    program = """
import sys
import vitcx
assert "numpy" not in sys.modules, "import vitcx does work"
with vitcx.load("demo") as explainer:
    explainer.explain("scene0.png", estimator="fast").save("o", "x")
loaded = {"torch", "timm", "onnx", "onnxscript"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, timeout=120)
