"""The files of a result: nothing that is not its own earlier self is replaced."""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

import vitcx
from vitcx.runtime import result_files
from vitcx.runtime.errors import InputError
from vitcx.runtime.result_files import ResultFolder, save_result


@dataclass
class Result:
    """A result as far as saving goes; `colour` stands for the picture and the settings."""

    targets: tuple[int, ...] = (0,)
    colour: int = 0
    original: Image.Image = field(init=False)

    def __post_init__(self):
        self.original = Image.new("RGB", (5, 4), (self.colour, 0, 0))

    def overlay(self, i=0, *, caption=False):
        return Image.new("RGB", (5, 4), (self.colour, i, 99))

    def arrays(self):
        return {"saliency": np.full((1, 2, 2), self.colour, np.float32)}

    def summary(self):
        return {"targets": list(self.targets)}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def save(folder, stem, result, image=None, inputs=()):
    return ResultFolder(folder, inputs).save(result, stem, image, figure=False)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (5, 4), "red").save(path)
    return path


def test_the_summary_names_the_picture_and_its_files(tmp_path, picture):
    saved = save(tmp_path / "o", "photo", Result((3, 1)), picture)
    found = json.loads((tmp_path / "o" / "photo.json").read_text())
    assert found == saved.summary
    assert found["image"] == str(picture)
    assert len(found["image_sha256"]) == 64
    assert set(found["files"].values()) == set(content(tmp_path / "o"))


def test_a_picture_in_the_folder_of_its_results_is_not_replaced(tmp_path, picture):
    (tmp_path / "photo.json").write_text('{"shapes": []}')
    before = content(tmp_path)
    for _ in range(2):  # the second run replaces the results of the first, and nothing else
        saved = save(tmp_path, "photo", Result(), picture, [picture])
        assert saved.files["overlay"].name == "photo_2.png"
    assert content(tmp_path).items() >= before.items()
    assert len(content(tmp_path)) == 5


def test_a_result_of_another_picture_is_kept(tmp_path):
    first = save(tmp_path, "img", Result(colour=1))
    kept = content(tmp_path)
    second = save(tmp_path, "img", Result(colour=2))
    assert (first.files["overlay"].name, second.files["overlay"].name) == ("img.png", "img_2.png")
    assert content(tmp_path).items() >= kept.items()


def test_a_result_of_the_same_picture_is_replaced(tmp_path):
    save(tmp_path, "img", Result((0, 1)))
    saved = save(tmp_path, "img", Result((1,)))
    assert saved.files["overlay"].name == "img.png"
    assert json.loads((tmp_path / "img.json").read_text())["targets"] == [1]


def test_two_equal_pictures_of_one_run_have_a_result_each(tmp_path):
    for _ in range(2):
        run = ResultFolder(tmp_path)
        names = [run.save(Result(), "img", figure=False).files["arrays"].name for _ in range(2)]
        assert names == ["img.npz", "img_2.npz"]
    assert len(content(tmp_path)) == 6


@pytest.mark.parametrize("stems", [("cat", "cat.3"), ("cat.3", "cat")])
def test_the_overlay_of_a_class_and_a_picture_of_its_name_do_not_meet(tmp_path, stems):
    run = ResultFolder(tmp_path)
    for colour, stem in enumerate(stems):
        run.save(Result((0, 3), colour), stem, figure=False)
    assert len(content(tmp_path)) == 8


def test_an_input_that_is_an_earlier_result_is_not_replaced(tmp_path, picture):
    out = tmp_path / "o"
    overlay = save(out, "photo", Result(), picture).files["overlay"]
    before = overlay.read_bytes()
    saved = save(out, "photo", Result(colour=9), picture, [picture, overlay])
    assert saved.files["overlay"].name == "photo_2.png"
    assert overlay.read_bytes() == before


def test_a_summary_that_says_two_things_is_no_summary_of_ours(tmp_path):
    ours = save(tmp_path, "img", Result()).files["summary"]
    text = ours.read_text().replace("{", '{"files": {}, ', 1)
    assert json.loads(text)["files"]
    ours.write_text(text)
    assert save(tmp_path, "img", Result()).files["summary"].name == "img_2.json"
    assert ours.read_text() == text


@pytest.mark.parametrize(
    "summary",
    ["", "[]", "{}", "[" * 100_000, '{"files": 3}', '{"image": "photo.png", "files": {"a": 1}}'],
)
def test_a_foreign_json_file_is_kept_whatever_is_in_it(tmp_path, summary):
    (tmp_path / "img.json").write_text(summary)
    assert save(tmp_path, "img", Result()).files["summary"].name == "img_2.json"
    assert (tmp_path / "img.json").read_text() == summary


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_folder_and_a_broken_link_in_the_way_are_kept(tmp_path):
    (tmp_path / "a.png").mkdir()
    assert save(tmp_path, "a", Result()).files["overlay"].name == "a_2.png"
    (tmp_path / "b.npz").symlink_to(tmp_path / "nowhere")
    assert save(tmp_path, "b", Result()).files["arrays"].name == "b_2.npz"


@pytest.mark.parametrize("stem", ["x" * 251, "写" * 83, "x" * 205 + "é"])
def test_a_name_that_nearly_fills_a_file_name_is_shortened(tmp_path, stem):
    saved = save(tmp_path, stem, Result((0, 123456)))
    assert all(path.is_file() for path in saved.files.values())
    other = save(tmp_path, stem[:-1] + "y", Result())
    assert saved.files["arrays"] != other.files["arrays"]
    assert "_2" not in other.files["arrays"].name


def test_a_name_that_is_no_text_goes_into_the_summary(tmp_path):
    stem = os.fsdecode(b"caf\xe9")
    saved = save(tmp_path, stem, Result(), tmp_path / f"{stem}.png")
    found = json.loads(saved.files["summary"].read_text(encoding="utf-8"))
    assert found["image"].endswith(f"{stem}.png")


def test_a_failure_leaves_no_part_of_a_result(tmp_path):
    class Broken(Result):
        def arrays(self):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        save(tmp_path, "x", Broken())
    assert content(tmp_path) == {}


def test_a_name_that_the_caller_chose_is_refused_where_it_is_taken(tmp_path):
    save_result(Result(colour=1), tmp_path, "x")
    save_result(Result(colour=1), tmp_path, "x")
    with pytest.raises(InputError, match=r"x\.png' is there already"):
        save_result(Result(colour=2), tmp_path, "x")


@pytest.mark.parametrize("stem", ["", ".", "a/b", "a\0b"])
def test_a_stem_that_is_no_file_name_is_refused(tmp_path, stem):
    with pytest.raises(InputError, match="not a file name"):
        save_result(Result(), tmp_path, stem)


def test_an_explanation_knows_the_path_of_its_picture(tmp_path, picture):
    with vitcx.load("demo") as explainer:
        given = (picture, np.zeros((4, 5, 3), np.uint8))
        results = [explainer.explain(image, estimator="fast") for image in given]
    found = [
        json.loads(result.save(tmp_path / "o", f"{i}")["summary"].read_text())
        for i, result in enumerate(results)
    ]
    assert [one["image"] for one in found] == [str(picture), None]
    assert ["image_sha256" in one for one in found] == [True, False]


def test_writers_in_one_folder_at_the_same_time_lose_and_mix_nothing(tmp_path, monkeypatch):
    """Two runs took the same free name, and each wrote a part of its files."""
    look = result_files._is_taken

    def look_slowly(*given):
        found = look(*given)
        time.sleep(0.05)  # so that others look before this one writes
        return found

    monkeypatch.setattr(result_files, "_is_taken", look_slowly)
    colours = range(4)
    with ThreadPoolExecutor(len(colours)) as pool:
        saved = list(pool.map(lambda c: save(tmp_path, "a", Result(colour=c)), colours))
    names = {name for one in saved for name in one.summary["files"].values()}
    assert names == set(content(tmp_path))
    assert len(names) == 3 * len(colours)
    for colour, one in zip(colours, saved, strict=True):
        assert json.loads(one.files["summary"].read_text()) == one.summary
        assert Image.open(one.files["overlay"]).getpixel((0, 0)) == (colour, 0, 99)
        with np.load(one.files["arrays"]) as arrays:
            assert arrays["saliency"][0, 0, 0] == colour
