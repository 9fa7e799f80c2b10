"""The comparison after export finds what is wrong with a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from vitcx.export.graph.parity import FLOAT32, Difference, check_parity, scene
from vitcx.export.preprocessing import Preprocessing
from vitcx.runtime.errors import BundleError, InputError

PREPROCESSING = Preprocessing((8, 12), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 1.0, "center", "bicubic")


class Reference(nn.Module):
    """Softmax of the channels' means, and the images themselves as the embedding."""

    def __init__(self, shift: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.shift, self.factor = shift, factor
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen.append(images)
        probabilities = torch.softmax(images.mean((2, 3)), 1) + self.shift
        return probabilities, images * self.factor


def graph(
    path: Path,
    batch: Any = "batch",
    names: tuple[str, str] = ("probabilities", "embedding"),
    kind: int = onnx.TensorProto.FLOAT,
    width: Any = 12,
) -> Path:
    """The reference as a graph written by hand, with one thing wrong if asked for."""
    helper = onnx.helper
    pixels = [batch, 3, 8, width]
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["means"], keepdims=0),
        helper.make_node("Softmax", ["means"], [names[0]]),
        helper.make_node("Identity", ["images"], [names[1]]),
    ]
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3])
    content = helper.make_graph(
        nodes,
        "reference",
        [helper.make_tensor_value_info("images", kind, pixels)],
        [
            helper.make_tensor_value_info(names[0], kind, [batch, 3]),
            helper.make_tensor_value_info(names[1], kind, pixels),
        ],
        [axes],
    )
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(content, opset_imports=[opset], ir_version=9), path)
    return path


def test_a_right_graph_passes_on_noise_scenes_and_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), (255, 0, 0)).save(tmp_path / "red.png")
    reference = Reference()
    path = graph(tmp_path / "model.onnx")
    figures = check_parity(path, reference, PREPROCESSING, pictures=[tmp_path / "red.png"])
    assert figures["images"] == 9
    assert figures["probabilities_max_abs"] <= 1e-6
    assert figures["embedding_max_abs"] == figures["embedding_rms_relative"] == 0
    assert sorted({len(images) for images in reference.seen}) == [1, 3]
    red = (np.array([1, 0, 0]) - PREPROCESSING.mean) / PREPROCESSING.std
    np.testing.assert_allclose(reference.seen[-1][0, :, 3, 4], red, rtol=1e-6)


@pytest.mark.parametrize(
    "reference",
    [
        Reference(shift=2 * FLOAT32.probabilities),
        Reference(factor=1 + 2 * FLOAT32.embedding_rms),
        Reference(shift=float("nan")),
        Reference(factor=float("nan")),
    ],
)
def test_values_that_differ_fail(reference: Reference, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="differs from torch"):
        check_parity(graph(tmp_path / "model.onnx"), reference, PREPROCESSING)


def test_one_entry_that_differs_fails() -> None:
    probabilities = np.full((1, 2), 0.5, np.float32)
    embedding = np.ones((1, 100, 10, 10), np.float32)
    wrong = embedding.copy()
    wrong[0, 3, 2, 1] += 2 * FLOAT32.embedding_max
    difference = Difference.between((probabilities, wrong), (probabilities, embedding))
    assert difference.embedding_rms < FLOAT32.embedding_rms or not difference.within(FLOAT32)
    assert difference.embedding_max == pytest.approx(2 * FLOAT32.embedding_max, rel=1e-3)
    assert not difference.within(FLOAT32)
    assert Difference().within(FLOAT32)


def test_an_embedding_of_zeros_has_no_scale() -> None:
    zeros = np.zeros((1, 2, 2, 2), np.float32)
    p = np.ones((1, 1), np.float32)
    assert Difference.between((p, zeros), (p, zeros)) == Difference()
    assert not Difference.between((p, zeros + 1), (p, zeros)).within(FLOAT32)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 1}, "dynamic batch"),
        ({"width": "width"}, "dynamic batch and nothing else"),
        ({"names": ("probability", "embedding")}, "outputs are"),
        ({"kind": onnx.TensorProto.DOUBLE}, r"images is tensor\(double\)"),
    ],
)
def test_a_graph_with_another_interface_fails(
    wrong: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=message):
        check_parity(graph(tmp_path / "model.onnx", **wrong), Reference(), PREPROCESSING)


def test_a_shape_that_differs_fails(tmp_path: Path) -> None:
    class Transposed(Reference):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            probabilities, embedding = super().forward(images)
            return probabilities, embedding.transpose(2, 3)

    with pytest.raises(BundleError, match=r"embedding \(1, 3, 8, 12\) and torch \(1, 3, 12, 8\)"):
        check_parity(graph(tmp_path / "model.onnx"), Transposed(), PREPROCESSING)


def test_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"bad\.png"):
        check_parity(
            graph(tmp_path / "model.onnx"),
            Reference(),
            PREPROCESSING,
            pictures=[tmp_path / "bad.png"],
        )


def test_scenes_are_pictures_and_differ() -> None:
    rng = np.random.default_rng(0)
    first, second = scene((20, 30), rng), scene((20, 30), rng)
    assert first.shape == (20, 30, 3)
    assert first.dtype == np.float32
    assert 0 <= first.min() < first.max() <= 1
    assert not np.array_equal(first, second)
