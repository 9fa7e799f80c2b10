"""Dataset jobs: what is written, and that stopping and going on changes nothing."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny_bundle import random_picture, write_tiny_bundle
from vitcx.cli import main
from vitcx.commands.progress import progress_bar
from vitcx.dataset.job import Summary

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bundle")
    write_tiny_bundle(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(23):
        Image.fromarray(random_picture(i)).save(folder / f"{i:02d}.png")
    (folder / "07.png").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("not listed")
    return folder


def arguments(source: object, out: Path, bundle: str, *more: str) -> list[str]:
    fixed = ["--bundle", bundle, "--engine", "onnxruntime", "--threads", "1", "--batch-size", "8"]
    return ["dataset", str(source), "--out", str(out), *fixed, *more]


def contents(out: Path, pattern: str = "part-*.parquet") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob(pattern))}


def test_a_folder_becomes_shards_and_reads_back(
    pictures: Path, tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(pictures, out, bundle, "--shard-size", "10", "--json")) == 2
    summary = json.loads(capsys.readouterr().out)
    assert (summary["pictures"], summary["explained"], summary["failed"]) == (23, 22, 1)
    assert sorted(contents(out)) == [f"part-0000{i}.parquet" for i in range(3)]
    table = pq.read_table(out)
    rows = table.to_pylist()
    assert [row["index"] for row in rows] == list(range(23))
    failed = [row for row in rows if row["error"] is not None]
    assert [Path(row["path"]).name for row in failed] == ["07.png"]
    good = [row for row in rows if row["error"] is None]
    assert {len(row["saliency"]) for row in good} == {16}
    assert table.schema.field("saliency").type.value_type == pa.float16()
    assert all(0 <= row["probability"] <= 1 for row in good)


def test_scores_that_are_no_probabilities_are_called_scores(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = {"activation": "Identity", "head": "regression", "target_kind": "value"}
    bundle = str(write_tiny_bundle(tmp_path / "bundle", **kind).path)
    out = tmp_path / "out"
    source = pictures / "0[67].png"  # the second is no picture: its row has the same columns
    assert main(arguments(source, out, bundle)) == 2
    table = pq.read_table(out)
    assert "probability" not in table.column_names
    assert [row["score"] is None for row in table.to_pylist()] == [False, True]
    # A job of an earlier vitcx, whose column was called probability, is not gone on with.
    description = json.loads((out / "_job.json").read_text())
    assert description.pop("score_column") == "score"
    (out / "_job.json").write_text(json.dumps(description))
    capsys.readouterr()
    assert main(arguments(source, out, bundle, "--resume")) == 2
    assert "started with another score_column" in capsys.readouterr().err


def test_full_resolution_several_targets_and_overlays(
    pictures: Path, tmp_path: Path, bundle: str
) -> None:
    out = tmp_path / "out"
    more = ["--resolution", "full", "--dtype", "float32", "--target", "top2", "--overlays"]
    assert main(arguments(pictures / "0[0-3].png", out, bundle, *more)) == 0
    rows = pq.read_table(out).to_pylist()
    assert [len(row["saliency"]) for row in rows] == [32 * 32] * 8
    assert len(list((out / "_overlays").glob("*.png"))) == 8


def test_lists_bring_targets_and_boxes(pictures: Path, tmp_path: Path, bundle: str) -> None:
    lines = [
        {"path": str(pictures / "00.png"), "target": "cat", "x0": 0, "y0": 0, "x1": 36, "y1": 40},
        {"path": str(pictures / "01.png"), "target": "3", "x0": -9, "y0": -9, "x1": -1, "y1": -1},
        {"path": str(pictures / "02.png"), "target": "cow", "x0": "", "y0": "", "x1": "", "y1": ""},
    ]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    out = tmp_path / "out"
    assert main(arguments(tmp_path / "list.csv", out, bundle)) == 2
    rows = pq.read_table(out).to_pylist()
    assert [row["target_name"] for row in rows[:2]] == ["cat", "dog"]
    assert [row["peak_in_box"] for row in rows[:2]] == [True, False]
    assert "cow" in rows[2]["error"]


def test_a_box_that_is_not_a_number_is_none(pictures: Path, tmp_path: Path, bundle: str) -> None:
    path = str(pictures / "00.png")
    lines = "\n".join(["path,x0,y0,x1,y1", f"{path},0,0,40,36", f"{path},nan,nan,nan,nan"])
    (tmp_path / "list.csv").write_text(lines)
    assert main(arguments(tmp_path / "list.csv", tmp_path / "out", bundle)) == 0
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert [row["peak_in_box"] for row in rows] == [True, None]
    assert rows[1]["box"] is None


def test_webdataset_shards(pictures: Path, tmp_path: Path, bundle: str) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"s-{shard}.tar", "w") as archive:
            for i in range(3):
                picture = (pictures / f"{shard * 3 + i:02d}.png").read_bytes()
                for extension, data in (("png", picture), ("cls", b"%d" % i), ("json", b"{}")):
                    info = tarfile.TarInfo(f"{i:03d}.{extension}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    assert main(arguments(tmp_path / "s-*.tar", tmp_path / "tar", bundle)) == 0
    rows = pq.read_table(tmp_path / "tar").to_pylist()
    assert [row["target"] for row in rows] == [0, 1, 2, 0, 1, 2]
    assert rows[0]["path"].endswith("s-0.tar/000.png")


def test_resuming_asks_and_checks(
    pictures: Path, tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    source = pictures / "0[0-3].png"
    assert main(arguments(source, out, bundle)) == 0
    assert main(arguments(source, out, bundle)) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(arguments(source, out, bundle, "--resume", "--seed", "1")) == 2
    assert "another settings" in capsys.readouterr().err
    assert main(arguments(pictures / "0[0-2].png", out, bundle, "--resume")) == 2
    assert "source_sha256" in capsys.readouterr().err
    assert main(arguments(source, out, bundle, "--resume")) == 0
    assert "4 were there already" in capsys.readouterr().out
    description = json.loads((out / "_job.json").read_text())
    (out / "_job.json").write_text(json.dumps({**description, "of_a_later_vitcx": 1}))
    assert main(arguments(source, out, bundle, "--resume")) == 2
    assert "another of_a_later_vitcx: resume" in capsys.readouterr().err


def test_a_damaged_or_lost_shard_is_made_again(pictures: Path, tmp_path: Path, bundle: str) -> None:
    out = tmp_path / "out"
    assert main(arguments(pictures, out, bundle, "--shard-size", "5")) == 2
    whole = contents(out)
    (out / "part-00001.parquet").write_bytes(whole["part-00001.parquet"][:100])
    (out / "part-00003.parquet").unlink()
    (out / ".part-00003.abc.parquet").write_bytes(b"left behind")
    (out / "._job.abc.json").write_bytes(b"left behind")
    assert main(arguments(pictures, out, bundle, "--shard-size", "5", "--resume")) == 2
    assert contents(out) == whole
    assert not list(out.glob(".*"))


def test_a_bit_that_flipped_in_a_saliency_is_found(
    pictures: Path, tmp_path: Path, bundle: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    words = arguments(pictures, out, bundle, "--shard-size", "5")
    assert main(words) == 2
    whole, digests = contents(out), contents(out / "_digests", "*")
    for name, digest in digests.items():
        shard = name.replace(".sha256", ".parquet")
        assert digest.decode() == f"{hashlib.sha256(whole[shard]).hexdigest()}  {shard}\n"
    assert len(digests) == len(whole) == 5
    path = out / "part-00001.parquet"
    column = pq.ParquetFile(path).metadata.row_group(0).column(5)
    assert column.path_in_schema.startswith("saliency.")
    damaged = bytearray(whole[path.name])
    damaged[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(damaged)
    assert main([*words, "--resume"]) == 2
    assert contents(out) == whole
    assert contents(out / "_digests", "*") == digests
    assert caplog.messages == [f"'{path}' is damaged: it is made again"]


def test_a_shard_of_an_older_vitcx_has_no_digest_and_is_taken(
    pictures: Path, tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = arguments(pictures / "0[0-5].png", out, bundle, "--shard-size", "2")
    assert main(words) == 0
    whole = contents(out)
    shutil.rmtree(out / "_digests")
    (out / "part-00001.parquet").write_bytes(whole["part-00001.parquet"][:-9])
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0
    assert "4 were there already" in capsys.readouterr().out
    assert contents(out) == whole
    assert list(contents(out / "_digests", "*")) == ["part-00001.sha256"]


def test_killed_between_a_digest_and_its_shard_costs_that_shard(
    pictures: Path,
    tmp_path: Path,
    bundle: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    words = arguments(pictures / "0[0-5].png", out, bundle, "--shard-size", "2")
    real = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if Path(target).name == "part-00001.parquet":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    assert main(words) == 1
    monkeypatch.undo()
    assert list(contents(out)) == ["part-00000.parquet"]
    assert list(contents(out / "_digests", "*")) == ["part-00000.sha256", "part-00001.sha256"]
    (out / "_digests" / ".part-00001.abc.sha256").write_bytes(b"left behind")
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0
    assert "2 were there already" in capsys.readouterr().out
    assert not list(out.rglob(".*"))
    for path in out.glob("part-*.parquet"):
        line = (out / "_digests" / f"{path.stem}.sha256").read_text()
        assert line.startswith(hashlib.sha256(path.read_bytes()).hexdigest())


def test_overlays_within_the_source_are_no_new_pictures(tmp_path: Path, bundle: str) -> None:
    for i in range(4):
        Image.fromarray(random_picture(i)).save(tmp_path / f"{i}.png")
    more = ("--overlays", "--shard-size", "2", "--json")
    for source, out in ((tmp_path, tmp_path / "out"), (tmp_path / "**" / "*.png", tmp_path / "a")):
        assert main(arguments(source, out, bundle, *more)) == 0
        whole = contents(out)
        (out / "part-00001.parquet").unlink()
        assert main(arguments(source, out, bundle, *more, "--resume")) == 0
        assert contents(out) == whole
        shutil.rmtree(out)


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_file_name_of_any_bytes_and_any_length_is_a_row(tmp_path: Path, bundle: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in (b"caf\xe9.png", b"line\nbreak.png", b"l" * 251 + b".png"):
        with open(bytes(folder) + b"/" + name, "wb") as file:  # noqa: PTH123
            Image.fromarray(random_picture(0)).save(file, "png")
    (folder / os.fsdecode(b"bad\xff.png")).write_bytes(b"not a picture")
    assert main(arguments(folder, tmp_path / "out", bundle, "--overlays")) == 2
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert [Path(row["path"]).name for row in rows][:2] == [r"bad\udcff.png", r"caf\udce9.png"]
    assert [row["error"] is None for row in rows] == [False, True, True, True]
    assert len(list((tmp_path / "out" / "_overlays").iterdir())) == 3


def test_the_description_is_on_the_disk_before_any_shard(
    pictures: Path, tmp_path: Path, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut cannot be made here: what is flushed is watched instead."""
    flushed: list[str] = []
    real = os.fsync

    def watched(handle: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{handle}").resolve().name)
        real(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc: what a file descriptor stands for cannot be told")
    monkeypatch.setattr(os, "fsync", watched)
    main(arguments(pictures / "0[0-3].png", tmp_path / "out", bundle))
    kinds = [name.partition(".")[2].partition(".")[0] or name for name in flushed]
    assert kinds == ["_job", "out", "part-00000", "_digests", "part-00000", "out"]


def test_a_full_disk_is_said_and_the_job_goes_on_later(
    pictures: Path,
    tmp_path: Path,
    bundle: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    main(arguments(pictures, undisturbed, bundle, "--shard-size", "5"))
    real, calls = pq.write_table, []

    def full(*given: object, **named: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(*given, **named)

    monkeypatch.setattr(pq, "write_table", full)
    assert main(arguments(pictures, out, bundle, "--shard-size", "5")) == 1
    assert "No space left" in capsys.readouterr().err
    assert len(contents(out)) == 2
    monkeypatch.undo()
    assert main(arguments(pictures, out, bundle, "--shard-size", "5", "--resume")) == 2
    assert contents(out) == contents(undisturbed)


def test_the_time_left_is_judged_by_what_was_made_now(
    pictures: Path, tmp_path: Path, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, bars = [0.0], []

    def bar(*columns: object, **options: object) -> object:
        bars.append(progress_bar(wanted=False))
        bars[0].get_time = lambda: clock[0]
        return bars[0]

    def run(job: object, progress: Callable[[int, bool], None]) -> Summary:
        for _ in range(2):
            progress(5, False)
        for _ in range(3):
            clock[0] += 10
            progress(1, True)
        (task,) = bars[0].tasks
        assert task.completed == 13
        # Ten more, of ten seconds each.
        assert bars[0].columns[-1].render(task).plain == "0:01:40 left"
        progress(10, False)
        assert task.finished
        return Summary(23, 23, 0, 20, 5)

    monkeypatch.setattr("vitcx.commands.dataset.progress_bar", bar)
    monkeypatch.setattr("vitcx.commands.dataset.Job.run", run)
    assert main(arguments(pictures, tmp_path / "out", bundle)) == 0


def run_and_kill(words: list[str], after: float, how: signal.Signals) -> int:
    source = Path(__file__).resolve().parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source)}
    process = subprocess.Popen(
        [sys.executable, "-m", "vitcx", *words],
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        return process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(how)
        return process.wait(30)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_killed_and_resumed_gives_the_same_bytes(
    pictures: Path, tmp_path: Path, bundle: str, how: str
) -> None:
    """A few moments here; `benchmarks/kill_resume.py` does 20 on a real model."""
    sent = signal.Signals[how]
    more = ("--shard-size", "2", "--cluster-masks", "none", "--estimator", "antithetic")
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    start = time.monotonic()
    assert run_and_kill(arguments(pictures, undisturbed, bundle, *more), 60, sent) == 2
    whole_time = time.monotonic() - start
    moments = random.Random(1)
    for attempt in range(4):
        words = arguments(pictures, out, bundle, *more)
        if attempt and (out / "_job.json").exists():
            words.append("--resume")
        code = run_and_kill(words, whole_time * moments.uniform(0.3, 0.95), sent)
        if sent == signal.SIGINT:
            assert code in (0, 1, 2, -signal.SIGINT, 130)
    assert run_and_kill(arguments(pictures, out, bundle, *more, "--resume"), 60, sent) == 2
    assert contents(out) == contents(undisturbed)
