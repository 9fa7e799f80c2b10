"""Benchmarks that start programs of their own: a killed job, and a server under load."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("onnxruntime")

from vitcx.runtime.demo.scenes import make_scene

pytestmark = pytest.mark.slow


def run(command: Any, *words: object) -> dict[str, Any]:
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.output.splitlines()[-1])
    return report


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_job_that_is_killed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from benchmarks import kill_resume

    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(3):
        Image.fromarray(make_scene(seed).image).save(folder / f"{seed}.png")
    words = [folder, "--kills", 1, "--shard-size", 1, "--out", tmp_path / "out.json"]
    report = run(kill_resume.main, *words)
    assert report["byte_for_byte"]
    assert (report["shards"], report["kills"]) == (3, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("mode", ["rates", "overload"])
def test_a_server_is_measured(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("httpx")
    from benchmarks import load

    monkeypatch.setattr(load, "CLIENTS", (1, 8))
    sizes = ["--pictures", 1, "--rounds", 1, "--seconds", 0.5]
    report = run(load.main, mode, *sizes, "--out", tmp_path / "load.json")
    assert json.loads((tmp_path / "load.json").read_text()) == report
    if mode == "rates":
        assert report["rows_per_second"]["server, 8"] > 0
        assert report["explain_many_over_bare"]["median"] > 0
    else:
        assert report["every_accepted_answered"]
        assert report["sent"] >= report["accepted"] >= 1
