"""`vitcx bench`: several bundles, engines that are not there, other systems."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.tiny_bundle import write_tiny_bundle
from vitcx.cli import main

pytest.importorskip("onnx")
QUICK = ["--quick", "--estimator", "fast", "--threads", "1"]


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two bundles whose model has the same name."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_tiny_bundle(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return ["--bundle", "one", "--bundle", "two"]


def test_two_bundles_of_one_model_have_a_row_each(two, capsys):
    assert main(["bench", *two, *QUICK]) == 0
    out = capsys.readouterr().out
    results = json.loads(out.splitlines()[-1])["results"]
    assert sorted(name.partition(":")[0] for name in results) == ["one", "two"]
    assert all(len(line) <= 80 for line in out.splitlines()[:-1])


def test_one_combination_given_twice_is_measured_once(two, capsys):
    words = ["--engine", "auto", "--engine", "onnxruntime"]
    assert main(["bench", "--bundle", "one", *words, *QUICK]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(report["results"]) == 1


def test_an_engine_that_is_left_out_keeps_the_brackets_of_its_advice(two, capsys, monkeypatch):
    from vitcx.commands import bench
    from vitcx.runtime.errors import MissingExtraError

    def load(bundle, engine, *more):
        if engine == "openvino":
            raise MissingExtraError("the engine", "openvino", "openvino")
        return real(bundle, engine, *more)

    real = bench.load
    monkeypatch.setattr(bench, "load", load)
    words = ["--engine", "onnxruntime", "--engine", "openvino"]
    assert main(["bench", "--bundle", "one", *words, *QUICK]) == 0
    out = capsys.readouterr().out
    assert "pip install 'vitcx[openvino]'" in "\n".join(out.splitlines()[:-1])


def test_bench_runs_where_python_has_no_resource_module():
    program = """
import sys
sys.modules["resource"] = None
import vitcx.commands.bench
from pathlib import Path
from vitcx.evaluation import speed
speed.Path = lambda name: Path("nowhere")
assert speed.peak_memory() is None
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_presets_methods_and_estimators_are_rows(two, capsys):
    words = ["--preset", "quick", "--method", "occlusion", "--estimator", "fast", "--quick"]
    assert main(["bench", "--bundle", "one", "--threads", "1", *words]) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [name.rpartition(" ")[2] for name in results] == ["quick", "occlusion", "fast"]
