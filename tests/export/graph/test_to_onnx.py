"""Graphs that torch writes with names or operators that would not do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcx.export.graph.attention_axes import four_axes
from vitcx.export.graph.to_onnx import write_onnx


class Attending(nn.Module):
    """Attention of three axes, or five, and positions in an `nn.Embedding`."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.axes = axes
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.embedding = nn.Embedding(16, 8)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = x + self.embedding(torch.arange(16))
        if self.axes == 5:
            x = x.reshape(x.shape[0], 2, 2, 4, 8)
        x = F.scaled_dot_product_attention(x, x, x).reshape(x.shape[0], 16, 8)
        return x.mean(1).softmax(1), x.transpose(1, 2).reshape(x.shape[0], 8, 4, 4)


@pytest.mark.parametrize("axes", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_attention_of_other_axes_and_an_embedding_of_torchs(axes: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Attending(axes).eval()
    write_onnx(module, (3, 16, 16), tmp_path)
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    assert [o.name for o in session.get_outputs()] == ["probabilities", "embedding"]
    images = torch.randn(3, 3, 16, 16)
    for ours, theirs in zip(
        session.run(None, {"images": images.numpy()}), module(images), strict=True
    ):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 3, 5, 4), (2, 2, 3, 5, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_four_axes_change_no_value(shape: tuple[int, ...], masked: bool) -> None:
    x = torch.randn(shape)
    mask = torch.randn(*shape[-3:-2], 5, 5) if masked else None
    expected = F.scaled_dot_product_attention(x, x, x, mask)
    original = F.scaled_dot_product_attention
    with four_axes():
        found = F.scaled_dot_product_attention(x, x, x, mask)
    assert F.scaled_dot_product_attention is original
    torch.testing.assert_close(found, expected)
