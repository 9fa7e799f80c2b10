"""What is taken to a GPU machine in parcels arrives whole, or is said to be missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import wheelhouse
from benchmarks.gpu.wheelhouse import INDEX, join, pack

SCRIPT = Path(wheelhouse.__file__)
CONTENTS = {"a.whl": b"a" * 10, "bundle/model.onnx": bytes(range(256)), "bundle/empty": b""}


@pytest.fixture
def packed(tmp_path):
    """Parcels of 100 bytes of a file and a folder: the graph is cut."""
    there = tmp_path / "there"
    for name, content in CONTENTS.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(content)
    return pack([there / "a.whl", there / "bundle"], tmp_path / "parcels", 100)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_is_joined_is_what_was_packed(packed, tmp_path):
    assert len(packed) == 3
    for parcel in packed:
        held = [p.stat().st_size for p in parcel.iterdir() if p.name != INDEX]
        assert 0 < sum(held) <= 100
    assert join(packed, tmp_path / "here") == []
    assert contents(tmp_path / "here") == CONTENTS


def test_the_order_and_the_number_of_calls_do_not_matter(packed, tmp_path):
    here = tmp_path / "here"
    faults = join(packed[:1], here)
    assert [line.split(":")[0] for line in faults] == ["bundle/model.onnx"]
    assert contents(here).keys() == {"a.whl", "bundle/empty"}
    assert join(packed[::-1], here) == []
    assert contents(here) == CONTENTS
    # What is there is not written again: its pieces need not come a second time.
    for piece in packed[0].iterdir():
        if piece.name != INDEX:
            piece.unlink()
    assert join(packed, here) == []


@pytest.mark.parametrize("damage", ["changed", "cut", "lost"])
def test_a_damaged_piece_is_named_and_nothing_is_made_of_it(damage, packed, tmp_path):
    (piece,) = (path for path in packed[1].iterdir() if path.name != INDEX)
    if damage == "changed":
        piece.write_bytes(b"x" + piece.read_bytes()[1:])
    elif damage == "cut":
        piece.write_bytes(piece.read_bytes()[:-1])
    else:
        piece.unlink()
    (line,) = join(packed, tmp_path / "here")
    assert line == f"bundle/model.onnx: missing or damaged: {piece.name}"
    assert contents(tmp_path / "here").keys() == {"a.whl", "bundle/empty"}


def test_a_damaged_file_that_was_joined_before_is_made_again(packed, tmp_path):
    join(packed, tmp_path / "here")
    (tmp_path / "here" / "a.whl").write_bytes(b"broken")
    assert join(packed, tmp_path / "here") == []
    assert contents(tmp_path / "here") == CONTENTS


def test_a_name_outside_the_folder_is_refused(packed, tmp_path):
    for parcel in packed:
        index = json.loads((parcel / INDEX).read_text())
        (parcel / INDEX).write_text(json.dumps({"../a.whl": index["a.whl"]}))
    assert join(packed, tmp_path / "here") == ["../a.whl: no name of a file in a folder"]
    assert not (tmp_path / "a.whl").exists()


def test_two_sets_of_parcels_are_joined_together(packed, tmp_path):
    (tmp_path / "b.whl").write_bytes(b"b" * 30)
    others = pack([tmp_path / "b.whl"], tmp_path / "others", 100)
    assert join([*packed, *others], tmp_path / "here") == []
    assert contents(tmp_path / "here") == {**CONTENTS, "b.whl": b"b" * 30}


def test_without_parcels_it_says_so(tmp_path):
    assert join([tmp_path / "nowhere"], tmp_path / "here") == [f"no {INDEX} in no folder at all"]


def test_joining_needs_nothing_but_python(packed, tmp_path):
    """-S: no site-packages; and the script alone, without the checkout."""
    alone = shutil.copy(SCRIPT, tmp_path / "wheelhouse.py")
    command = [sys.executable, "-I", "-S", str(alone), "join", *map(str, packed)]
    done = subprocess.run([*command, "--out", str(tmp_path / "here")], check=False)
    assert done.returncode == 0
    assert contents(tmp_path / "here") == CONTENTS
    shutil.rmtree(packed[-1])
    shutil.rmtree(tmp_path / "here")
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "here")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout.startswith("bundle/model.onnx: missing or damaged: ")


def test_pip_is_asked_for_the_steps_wheels_alone(monkeypatch, tmp_path):
    asked = []

    def run(command, check):
        assert check
        asked.append(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / "x-1-py3-none-any.whl").write_bytes(b"x")

    monkeypatch.setattr(wheelhouse.subprocess, "run", run)
    out = tmp_path / "parcels"
    monkeypatch.setattr(sys, "argv", ["w", "fetch", "kernels", "--python", "3.11",
                                      "--out", str(out)])  # fmt: skip
    wheelhouse.main()
    (command,) = asked
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)
    assert command[command.index("--python-version") + 1] == "3.11"
    assert set(wheelhouse.STEPS["kernels"]) <= set(command)
    assert "onnxruntime-gpu" not in command
    assert join([out / "parcel-00"], tmp_path / "here") == []
    assert contents(tmp_path / "here") == {"x-1-py3-none-any.whl": b"x"}


def test_what_was_packed_before_is_not_overwritten(packed, tmp_path):
    with pytest.raises(SystemExit, match="not empty"):
        pack([tmp_path / "there" / "a.whl"], tmp_path / "parcels", 100)
