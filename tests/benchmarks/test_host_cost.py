"""The host's steps are timed on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("onnxruntime")

from benchmarks import host_cost


def test_every_step_is_timed(tmp_path: Path) -> None:
    out = tmp_path / "host.json"
    words = ["--masks", "6", "--rounds", "4", "--out", str(out)]
    result = CliRunner().invoke(host_cost.main, words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output.splitlines()[-1])
    assert json.loads(out.read_text()) == found
    assert found["masks"] == 6
    assert len(found["milliseconds"]) == 6
    assert found["blend_percent_of_scoring"].keys() == {"noise made", "noise kept"}
    for rows in (found["milliseconds"], found["blend_percent_of_scoring"]):
        for step in rows.values():
            least, most = step["quartiles"]
            assert 0 <= least <= step["median"] <= most
