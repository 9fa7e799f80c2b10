"""The comparison of speed: who is in it, what is kept, and how cost grows. Nothing is asserted of
times."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("matplotlib")

from benchmarks import growth
from benchmarks.contenders import Builder, Contender, parse_bundle
from vitcx.evaluation.speed import describe_run, peak_memory, ratios
from vitcx.runtime.errors import InputError


def test_a_bundle_may_name_its_engine():
    assert parse_bundle("folder") == ("folder", "auto")
    assert parse_bundle("folder@openvino") == ("folder", "openvino")
    with pytest.raises(InputError, match="DIR@ENGINE"):
        parse_bundle("@openvino")


def test_the_authors_code_is_asked_for_by_place():
    with pytest.raises(InputError, match="--authors-code"):
        Builder("demo").build(Contender("authors"))


def test_ratios_are_of_neighbouring_calls():
    assert ratios([2, 4, 12], [1, 1, 3]) == {"q25": 3, "median": 4, "q75": 4}


def test_a_run_says_what_is_not_installed():
    described = describe_run(("numpy", "no-such-package"))
    assert described["versions"]["numpy"] == np.__version__
    assert described["versions"]["no-such-package"] == "not installed"


def test_memory_is_this_process_own():
    before = peak_memory()
    held = bytearray(64 << 20)
    held[:: 1 << 12] = b"1" * len(held[:: 1 << 12])  # touched, page by page
    assert peak_memory() >= before
    assert peak_memory() >= len(held)


def test_growth_measures_the_embedded_model(tmp_path, monkeypatch):
    for name, few in (("THRESHOLDS", (0.4, 0.2)), ("CHANNELS", (64, 192)), ("IN_FLIGHT", (1, 2))):
        monkeypatch.setattr(growth, name, few)
    arguments = ["--repeats", "1", "--limit", "1", "--out", str(tmp_path / "out")]
    run = CliRunner().invoke(growth.main, arguments, catch_exceptions=False)
    assert run.exit_code == 0
    report = json.loads(run.output.splitlines()[-1])
    assert report == json.loads((tmp_path / "out" / "growth.json").read_text())
    counts = [row["masks"] for row in report["masks"]]
    assert counts == sorted(counts)
    assert report["masks"][-1]["setting"] == {"cluster_masks": "none"}
    assert [row["channels"] for row in report["channels"]] == list(growth.CHANNELS)
    assert (tmp_path / "out" / "growth.png").stat().st_size > 1000


@pytest.mark.slow
def test_contenders_take_turns_on_the_embedded_model(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from benchmarks import throughput

    out = tmp_path / "speed.json"
    words = ["--bundle", "demo", "--limit", "1", "--rounds", "1", "--steps", "2", "--threads", "1"]
    words += ["--variant", "one=vit-cx:estimator=fast", "--out", str(out)]
    run = CliRunner().invoke(throughput.main, words, catch_exceptions=False)
    assert run.exit_code == 0
    report = json.loads(run.output.splitlines()[-1])
    assert json.loads(out.read_text()) == report
    ours = report["results"]["vitcx fp32 onnxruntime one"]
    assert ours["times_faster"]["median"] > 0
    assert ours["peak_bytes"] > 1e6
    assert ours["packed_per_second"] > 0
    kept = out.with_suffix(".jsonl").read_text()
    again = CliRunner().invoke(throughput.main, words, catch_exceptions=False)
    goes_on = json.loads(again.output.splitlines()[-1])["results"]
    assert {name: row["p50"] for name, row in goes_on.items()} == {
        name: row["p50"] for name, row in report["results"].items()
    }
    assert out.with_suffix(".jsonl").read_text() == kept
