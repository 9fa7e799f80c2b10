"""The dataset job on a local Ray, one actor for one CPU; a worker is killed in the middle."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny_bundle import random_picture, write_tiny_bundle

pytest.importorskip("ray")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SOURCE = Path(__file__).resolve().parents[2] / "src"


@contextmanager
def running(words: list[str]) -> Iterator[subprocess.Popen]:
    """A job in a process of its own; stopped, with all it started, at the end."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "vitcx", "dataset", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*.parquet"))}


def actors_of(process: subprocess.Popen) -> list[int]:
    """Process ids of shard writers that belong to this job's session."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                command = (folder / "cmdline").read_bytes()
                ours = f"VITCX_TEST_JOB={process.args[-1]}".encode()
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            if b"ray::" in command and b"ShardWriter" in command and ours in environment:
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize("kill", [False, True])
def test_ray_writes_the_same_shards(tmp_path: Path, kill: bool, monkeypatch) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(40):
        Image.fromarray(random_picture(i, (800, 800))).save(pictures / f"{i:02d}.png")
    words = [str(pictures), "--bundle", str(tmp_path / "bundle"), "--engine", "onnxruntime"]
    words += ["--threads", "1", "--batch-size", "8", "--shard-size", "2"]
    words += ["--estimator", "antithetic", "--cluster-masks", "none"]
    with running([*words, "--out", str(tmp_path / "local")]) as local:
        assert local.wait(120) == 0, local.stdout.read()
    out = tmp_path / "ray"
    monkeypatch.setenv("VITCX_TEST_JOB", str(out))
    with running([*words, "--ray", "--out", str(out)]) as job:
        if kill:
            end = time.monotonic() + 120
            while not contents(out) and job.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
            victims = actors_of(job)
            assert victims, "no actor was found to kill"
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            assert len(contents(out)) < 20, "the job had ended before the worker was killed"
        assert job.wait(240) == 0, job.stdout.read()
    assert contents(out) == contents(tmp_path / "local")


def test_what_a_worker_says_is_one_line(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    (tmp_path / "pictures").mkdir()
    Image.fromarray(random_picture(0)).save(tmp_path / "pictures" / "0.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_overlays").write_text("a file where a folder is wanted")
    words = [str(tmp_path / "pictures"), "--bundle", str(tmp_path / "bundle"), "--overlays"]
    words += ["--engine", "onnxruntime", "--threads", "1", "--ray", "--out", str(tmp_path / "out")]
    with running(words) as job:
        said = job.communicate(timeout=240)[0]
    assert job.returncode == 1, said
    assert "Traceback" not in said
    assert re.match(r"vitcx: shard 0 failed: \[Errno \d+\]", said.splitlines()[-1]), said
    assert "DeprecationWarning" not in said
