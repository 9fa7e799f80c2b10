"""A job's folder: one job at a time, and nothing is said to be there that is not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny_bundle import random_picture, write_tiny_bundle
from vitcx.cli import main
from vitcx.dataset import job as jobs
from vitcx.dataset.description import MOST_DESCRIPTION_BYTES
from vitcx.dataset.job import LOCK_NAME
from vitcx.runtime.errors import InputError
from vitcx.runtime.folder_lock import FolderLock

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pq = pytest.importorskip("pyarrow.parquet")

PICTURES = 6
TAKEN = "another job is at work"
pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    write_tiny_bundle(folder / "bundle")
    (folder / "pictures").mkdir()
    for i in range(PICTURES):
        Image.fromarray(random_picture(i)).save(folder / "pictures" / f"{i}.png")
    return folder


def words(given: Path, out: Path, *more: str, source: Path | None = None) -> list[str]:
    fixed = ["--bundle", str(given / "bundle"), "--engine", "onnxruntime", "--threads", "1"]
    fixed += ["--batch-size", "8", "--shard-size", "2"]
    return ["dataset", str(source or given / "pictures"), "--out", str(out), *fixed, *more]


def test_a_second_job_in_a_folder_is_refused_at_once(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with FolderLock(out, LOCK_NAME, TAKEN):
        assert main(words(given, out)) == 2
        said = capsys.readouterr().err
        assert "another job is at work in" in said
        assert said.count("\n") == 1
        assert [path.name for path in out.iterdir()] == [LOCK_NAME]
    assert not list(out.iterdir())
    assert main(words(given, out)) == 0
    assert not (out / LOCK_NAME).exists()


HOLDER = """
import sys, time
from pathlib import Path
from vitcx.runtime.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]), "_job.lock", "taken")
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[2] / "src"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with pytest.raises(InputError, match="another job is at work"):
                FolderLock(tmp_path, LOCK_NAME, TAKEN)
        finally:
            process.kill()
    assert (tmp_path / LOCK_NAME).exists()
    with FolderLock(tmp_path, LOCK_NAME, TAKEN) as lock:
        lock.close()
        lock.close()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_was_removed_is_no_second_lock(tmp_path: Path) -> None:
    """Who opened the file before its holder removed it must not lock what has no name."""
    first = FolderLock(tmp_path, LOCK_NAME, TAKEN)
    real, taken = os.open, []

    def opened_before_the_end(path: object, *given: object) -> int:
        handle = real(path, *given)
        if not taken:
            taken.append(handle)
            first.close()
        return handle

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opened_before_the_end)
        second = FolderLock(tmp_path, LOCK_NAME, TAKEN)
    assert taken
    with pytest.raises(InputError, match="another job is at work"):
        FolderLock(tmp_path, LOCK_NAME, TAKEN)
    second.close()


def after_shards(count: int, happens: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = jobs.write_shard, []

    def watched(*given: object) -> None:
        real(*given)
        written.append(given)
        if len(written) == count:
            happens()

    monkeypatch.setattr(jobs, "write_shard", watched)


@pytest.mark.parametrize("overlays", [(), ("--overlays",)])
def test_a_folder_that_is_removed_during_the_job_is_said(
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overlays: tuple[str, ...],
) -> None:
    out = tmp_path / "out"
    after_shards(2, lambda: shutil.rmtree(out), monkeypatch)
    assert main(words(given, out, *overlays)) == 1
    said = capsys.readouterr()
    assert "explained" not in said.out
    assert "was removed or changed while the job ran: begin again" in said.err
    assert not out.exists()


def test_a_shard_that_is_removed_during_the_job_is_said(
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calm, out = tmp_path / "calm", tmp_path / "out"
    assert main(words(given, calm)) == 0
    capsys.readouterr()
    after_shards(3, (out / "part-00001.parquet").unlink, monkeypatch)
    assert main(words(given, out)) == 1
    said = capsys.readouterr()
    assert "explained" not in said.out
    assert "1 of 3 shards" in said.err
    assert "(part-00001.parquet): go on with --resume" in said.err
    monkeypatch.undo()
    assert main(words(given, out, "--resume")) == 0
    for path in calm.glob("part-*"):
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_a_shard_that_another_took_the_place_of_is_said(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def replace() -> None:
        (out / "part-00000.parquet").write_bytes(b"something else")

    after_shards(2, replace, monkeypatch)
    assert main(words(given, out)) == 1


@pipes
@pytest.mark.timeout(60)
def test_a_description_that_is_no_file_is_not_waited_for(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, make in (
        ("pipe", os.mkfifo),
        ("folder", os.mkdir),
        ("deep", lambda path: path.write_text("[" * 100_000)),
        ("twice", lambda path: path.write_text('{"schema": 1, "schema": 1}')),
        ("long", lambda path: path.write_bytes(b" " * (MOST_DESCRIPTION_BYTES + 1))),
    ):
        out = tmp_path / name
        out.mkdir()
        make(out / "_job.json")
        assert main(words(given, out, "--resume")) == 2
        said = capsys.readouterr().err
        assert "_job.json' " in said
        assert "give another --out" in said
        assert said.count("\n") == 1


@pipes
@pytest.mark.timeout(60)
def test_a_pipe_or_a_device_in_a_list_is_a_row_with_an_error(given: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    lines = ["path", str(given / "pictures" / "0.png"), "pipe.png", "/dev/zero", ".", "none.png"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    assert main(words(given, tmp_path / "out", source=tmp_path / "list.csv")) == 2
    errors = [row["error"] for row in pq.read_table(tmp_path / "out").to_pylist()]
    assert errors[0] is None
    for error, part in zip(
        errors[1:], ("a pipe", "a device", "a folder", "no picture"), strict=True
    ):
        assert part in error


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_a_killed_job_leaves_a_folder_that_can_be_gone_on_with(given: Path, tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[2] / "src"
    process = subprocess.Popen(
        [sys.executable, "-m", "vitcx", *words(given, tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(source)},
        stdout=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None and not (tmp_path / "out" / LOCK_NAME).exists():
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    more = ["--resume"] if (tmp_path / "out" / "_job.json").exists() else []
    assert main(words(given, tmp_path / "out", *more)) == 0
