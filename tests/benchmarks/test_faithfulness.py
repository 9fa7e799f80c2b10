"""What else the paper claims, measured on two drawn scenes; a run that was stopped goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("torch", reason="needs the extra 'export'")
pytest.importorskip("onnxruntime", reason="needs the extra 'cpu'")
pytest.importorskip("matplotlib", reason="needs the extra 'plot'")

from benchmarks import faithfulness
from vitcx.runtime.explainer import Explainer

pytestmark = pytest.mark.slow


def run(out: Path, limit: int) -> dict[str, Any]:
    options = ["--bundle", "demo", "--limit", str(limit), "--sanity-limit", "1", "--steps", "4"]
    result = CliRunner().invoke(faithfulness.main, [*options, "--out", str(out)])
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.output.splitlines()[-1])
    return report


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faithfulness, "THRESHOLDS", (0.2, 0.3))
    monkeypatch.setattr(faithfulness, "NOISES", (0.1,))
    whole = run(tmp_path / "whole", 2)
    first = run(tmp_path / "stopped", 1)
    lines = tmp_path / "stopped" / "faithfulness.jsonl"
    kept = lines.read_text().splitlines(keepends=True)
    lines.write_text("".join(kept[:-3]) + kept[-3][:20])  # in the middle of the sanity check

    explained = []
    plain = Explainer.explain
    monkeypatch.setattr(Explainer, "explain", lambda *a, **k: explained.append(1) or plain(*a, **k))
    stopped = run(tmp_path / "stopped", 2)
    # The first scene's masks are not asked for again: two for the second, two for the figure.
    assert len(explained) == 4
    for report in (whole, stopped):
        for unequal in ("date", "command"):
            del report[unequal]
    np.testing.assert_allclose(
        list(stopped["randomised"]["mean_rank_correlation"].values()),
        list(whole["randomised"]["mean_rank_correlation"].values()),
        atol=1e-6,
    )
    del stopped["randomised"], whole["randomised"]
    assert stopped == whole
    assert first["pictures"] == 1
    assert whole["sensitivity"]["distance_threshold=0.2"]["masks"] >= 1
    assert 0 < whole["mean_mask_similarity"]["mean"] <= 1
    with Image.open(tmp_path / "whole" / "coverage.jpg") as drawn:
        assert np.asarray(drawn).std() > 0


def test_maps_that_are_flat_have_a_rank_correlation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = np.zeros((96, 96), np.float32)
    monkeypatch.setattr("benchmarks.plain.batched", lambda *a, **k: flat)
    monkeypatch.setattr(faithfulness, "THRESHOLDS", (0.2,))
    monkeypatch.setattr(faithfulness, "NOISES", ())
    found = set(run(tmp_path, 1)["randomised"]["mean_rank_correlation"].values())
    assert found == {1.0}
