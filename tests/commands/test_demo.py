"""`vitcx demo`: its files, and those of others."""

from __future__ import annotations

import json

from PIL import Image

from vitcx.cli import main


def test_a_second_run_replaces_its_own_files_and_adds_other_scenes(tmp_path, capsys):
    words = ["demo", "--out", str(tmp_path), "--scenes", "1"]
    for seed in ("0", "0", "1"):
        assert main([*words, "--seed", seed]) == 0, capsys.readouterr().err
    scenes = {"scene_00", "scene_01"}
    expected = {*scenes, *(f"{scene}.balanced" for scene in scenes)}
    assert {path.stem for path in tmp_path.glob("*.json")} == expected


def test_a_picture_called_demo_png_is_kept(tmp_path, capsys):
    path = tmp_path / "demo.png"
    Image.new("RGB", (9, 9)).save(path)
    before = path.read_bytes()
    assert main(["demo", "--out", str(tmp_path), "--scenes", "1"]) == 2
    assert "is not from 'vitcx demo'" in capsys.readouterr().err
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


def test_a_preset_is_taken(tmp_path):
    assert main(["demo", "--out", str(tmp_path), "--scenes", "1", "--preset", "quick"]) == 0
    summary = json.loads((tmp_path / "scene_00.json").read_text())
    assert summary["settings"]["estimator"] == "teams"


def test_presets_are_compared(tmp_path, capsys):
    """The recommended one stands below the paper's, unless others are asked for."""
    assert main(["demo", "--out", str(tmp_path), "--scenes", "1"]) == 0
    said = capsys.readouterr().out
    assert "paper: 1 of 1 peaks" in said
    assert "balanced: 1 of 1 peaks" in said
    for name, estimator in (("scene_00", "paper"), ("scene_00.balanced", "teams-difference")):
        summary = json.loads((tmp_path / f"{name}.json").read_text())
        assert summary["settings"]["estimator"] == estimator
