"""A bundle as a model of MLflow: pictures in, classes, scores and maps out.

MLflow runs this file when it loads the model ("models from code"): nothing is pickled.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from PIL import Image

import vitcx


class VitcxModel(mlflow.pyfunc.PythonModel):
    """Explains each picture of a column ``image``: files in base64.

    Parameters of a call: ``targets`` ("top1") and ``preset`` ("balanced").
    """

    def load_context(self, context: Any) -> None:
        """Open the bundle."""
        self._explainer = vitcx.load(context.artifacts["bundle"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row for each picture and target, with the map as an 8-bit PNG in base64."""
        given = {"targets": "top1", "preset": "balanced", **(params or {})}
        pictures = [Image.open(io.BytesIO(base64.b64decode(text))) for text in model_input["image"]]
        rows = []
        for picture, result in enumerate(self._explainer.explain_many(pictures, **given)):
            for i, target in enumerate(result.targets):
                rows.append(
                    {
                        "picture": picture,
                        "target": int(target),
                        "name": self._explainer.manifest.class_names[target],
                        "score": float(result.probabilities[target]),
                        "map": _png(result.heatmap(i)),
                    }
                )
        return pd.DataFrame(rows)


def _png(heatmap: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.rint(heatmap * 255).astype(np.uint8)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


mlflow.models.set_model(VitcxModel())
