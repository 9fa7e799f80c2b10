"""The model of the MLflow example, logged and loaded by MLflow itself."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitcx
from vitcx.runtime.explainer import find_bundle

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "mlflow"
# In a process of its own: MLflow warns, and changes the logging of the process it is in.
PROGRAM = """
import sys, mlflow, pandas
sys.path.insert(0, sys.argv[1])
import log_model
mlflow.set_tracking_uri(sys.argv[4])
model = mlflow.pyfunc.load_model(log_model.log(sys.argv[2]))
table = pandas.DataFrame({"image": sys.argv[3].split()})
made = model.predict(table, params={"targets": "top2"})
made.to_json(sys.argv[5], orient="records")
"""


@pytest.mark.slow
def test_the_logged_model_explains_as_the_library_does(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("pandas")
    pictures, texts = [], []
    for seed in range(2):
        pictures.append(np.random.default_rng(seed).integers(0, 255, (60, 80, 3), np.uint8))
        buffer = io.BytesIO()
        Image.fromarray(pictures[-1]).save(buffer, "png")
        texts.append(base64.b64encode(buffer.getvalue()).decode())
    given = [str(FOLDER), str(find_bundle("demo")), " ".join(texts)]
    given += [f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "made.json")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *given],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "made.json").read_text("utf-8"))
    assert [row["picture"] for row in rows] == [0, 0, 1, 1]
    with vitcx.load("demo") as explainer:
        expected = [explainer.explain(picture, "top2", preset="balanced") for picture in pictures]
    for row, (result, i) in zip(rows, ((r, i) for r in expected for i in range(2)), strict=True):
        assert row["target"] == result.targets[i]
        assert row["score"] == pytest.approx(result.probabilities[row["target"]], abs=1e-5)
        heat = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["map"]))), np.float32)
        np.testing.assert_allclose(heat, 255 * result.heatmap(i), atol=1.5)
