"""The comparison of speed: who is in it, what is kept, and how cost grows. Nothing is asserted of
times."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("matplotlib")

from benchmarks import growth
from benchmarks.contenders import Contender, Workshop, parse_bundle
from vitcx.evaluation.speed import describe_run, peak_memory, ratios
from vitcx.runtime.demo.scenes import make_scene
from vitcx.runtime.errors import InputError


def test_a_bundle_may_name_its_engine():
    assert parse_bundle("folder") == ("folder", "auto")
    assert parse_bundle("folder@openvino") == ("folder", "openvino")
    with pytest.raises(InputError, match="DIR@ENGINE"):
        parse_bundle("@openvino")


def test_the_authors_code_is_asked_for_by_place():
    with pytest.raises(InputError, match="--authors-code"):
        Workshop("deit_tiny_patch16_224").build(Contender("authors"))


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


def test_growth_measures_the_embedded_model(tmp_path):
    from PIL import Image

    Image.fromarray(make_scene(1).image).save(tmp_path / "scene.png")
    arguments = [str(tmp_path), "--repeats", "1", "--limit", "1", "--out", str(tmp_path / "out")]
    run = CliRunner().invoke(growth.main, arguments, catch_exceptions=False)
    assert run.exit_code == 0
    report = json.loads(run.output.splitlines()[-1])
    assert report == json.loads((tmp_path / "out" / "growth.json").read_text())
    counts = [row["masks"] for row in report["masks"]]
    assert counts == sorted(counts)
    assert report["masks"][-1]["setting"] == {"cluster_masks": "none"}
    assert [row["channels"] for row in report["channels"]] == list(growth.CHANNELS)
    assert (tmp_path / "out" / "growth.png").stat().st_size > 1000
