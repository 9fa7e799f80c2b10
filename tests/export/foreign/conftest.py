"""Small ONNX files that the tests share, made with the exporter that takes a second each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from benchmarks import foreign_graphs
from tests.export import tiny
from vitcx.export import import_onnx
from vitcx.runtime.bundle import Bundle

PICTURES = {"mean": (0.5,), "std": (0.5,), "crop": 0.9, "interpolation": "bicubic"}
SHAPE = (3, 64, 64)


@pytest.fixture(scope="session")
def vit() -> nn.Module:
    return tiny.make("vit")


@pytest.fixture(scope="session")
def vit_file(vit: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny.make("vit")`, of a dynamic batch."""
    path = tmp_path_factory.mktemp("file") / "vit.onnx"
    foreign_graphs.write(vit, path, SHAPE, foreign_graphs.Recipe("torchscript", 17))
    return path


@pytest.fixture
def taken(tmp_path: Path) -> Callable[..., Bundle]:
    """`import_onnx` to a new folder, with what nobody can know of the pictures."""

    def take(path: Path, **options: Any) -> Bundle:
        return import_onnx(path, tmp_path / "bundle", **{**PICTURES, **options})

    return take
