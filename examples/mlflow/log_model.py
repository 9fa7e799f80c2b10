"""Logs a bundle as a model of MLflow: `python log_model.py BUNDLE [NAME]`."""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema


def log(bundle: str, name: str = "vitcx") -> str:
    """Log it, and return the model's address."""
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "image")]),
        params=ParamSchema(
            [ParamSpec("targets", "string", "top1"), ParamSpec("preset", "string", "balanced")]
        ),
    )
    model = mlflow.pyfunc.log_model(
        name=name,
        python_model=str(Path(__file__).with_name("vitcx_model.py")),
        artifacts={"bundle": str(Path(bundle).resolve())},
        pip_requirements=["vitcx[cpu]", "pandas", "pillow"],
        signature=signature,
    )
    return model.model_uri


if __name__ == "__main__":
    print(log(*sys.argv[1:]))
