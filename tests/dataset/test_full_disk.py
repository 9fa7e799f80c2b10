"""A job on a disk that really is full: a small tmpfs, in a mount namespace of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny_bundle import random_picture, write_tiny_bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("pyarrow")

SOURCE = Path(__file__).resolve().parents[2] / "src"
PICTURES, SHARD_SIZE = 8, 2
ROOM = "size=16m,nr_inodes=1000"


@pytest.fixture(scope="module")
def unshare(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that gives a program mounts of its own; skips where there is none."""
    place = shlex.quote(str(tmp_path_factory.mktemp("mount")))
    for words in (["unshare", "-m"], ["unshare", "-Urm"]):
        if shutil.which(words[0]):
            try_it = [*words, "sh", "-c", f"mount -t tmpfs -o size=4k none {place}"]
            if subprocess.run(try_it, capture_output=True).returncode == 0:
                return words
    pytest.skip("no mount namespaces for this user: a disk of our own cannot be filled")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, pictures and a place to mount a disk at."""
    folder = tmp_path_factory.mktemp("given")
    write_tiny_bundle(folder / "bundle")
    (folder / "pictures").mkdir()
    for i in range(PICTURES):
        Image.fromarray(random_picture(i)).save(folder / "pictures" / f"{i}.png")
    (folder / "disk").mkdir()
    return folder


def on_a_disk(unshare: list[str], given: Path, script: str, *more: str) -> str:
    """Run a script in which `job OUT` explains the pictures; its output."""
    words = [sys.executable, "-m", "vitcx", "dataset", str(given / "pictures")]
    words += ["--bundle", str(given / "bundle"), "--engine", "onnxruntime", "--threads", "1"]
    words += ["--batch-size", "8", "--shard-size", str(SHARD_SIZE), *more]
    job = f'job() {{ {shlex.join(words)} --out "$@" 2>&1; echo "code $?"; }}'
    done = subprocess.run(
        [*unshare, "sh", "-c", f"cd {shlex.quote(str(given / 'disk'))}/..\n{job}\n{script}"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


LARGE = ("--resolution", "full", "--target", "top5")  # about 22 KiB a shard


@pytest.mark.parametrize(
    ("disk", "more", "whole_shards"),
    [
        pytest.param("size=64k", LARGE, 2, id="in a shard"),
        pytest.param("size=24k", ("--overlays",), 1, id="in an overlay", marks=pytest.mark.slow),
        # The disk's own folder, the job's, its lock and description, the digests', a shard and its
        # digest.
        pytest.param("size=1m,nr_inodes=7", (), 1, id="no more files", marks=pytest.mark.slow),
    ],
)
def test_a_job_that_fills_the_disk_says_so_and_goes_on_when_there_is_room(
    unshare: list[str], given: Path, tmp_path: Path, disk: str, more: tuple, whole_shards: int
) -> None:
    kept = shlex.quote(str(tmp_path))
    script = f"""
        mount -t tmpfs -o {disk} none disk
        job disk/out
        cp -r disk/out {kept}/full
        mount -o remount,{ROOM} disk
        job disk/out --resume
        cp -r disk/out {kept}/resumed
        job disk/calm
        cp -r disk/calm {kept}/calm
    """
    said = on_a_disk(unshare, given, script, *more).splitlines()
    assert said[0].startswith("vitcx: "), said
    assert "No space left on device" in said[0]
    assert said[1] == "code 1", said
    assert said[3::2] == ["code 0", "code 0"], said
    full, resumed, calm = (files(tmp_path / name) for name in ("full", "resumed", "calm"))
    shards = [name for name in full if name.startswith("part-")]
    assert len(shards) == whole_shards
    assert all(full[name] == calm[name] for name in full), "a file is not whole"
    assert resumed == calm
    assert len(calm) > PICTURES // SHARD_SIZE


@pytest.mark.parametrize("again", ["", "--resume"])
def test_a_disk_that_was_full_before_the_job_leaves_nothing_behind(
    unshare: list[str], given: Path, tmp_path: Path, again: str
) -> None:
    script = f"""
        mount -t tmpfs -o size=4k none disk
        head -c 4096 /dev/zero > disk/filler
        job disk/out
        ls -A disk/out
        mount -o remount,{ROOM} disk
        job disk/out {again}
    """
    said = on_a_disk(unshare, given, script).splitlines()
    assert "No space left on device" in said[0]
    assert said[1] == "code 1", said
    assert "8 of 8 pictures explained" in said[2], "something was left in the folder"
    assert said[3] == "code 0"
