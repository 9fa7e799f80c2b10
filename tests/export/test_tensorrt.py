"""Exported graphs through TensorRT-RTX's parser and builder, with no GPU, and fused attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from tests.export import tiny
from vitcx.export import export_model
from vitcx.export.graph.to_onnx import _attention_of, write_onnx
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.tensorrt.build_options import BuildOptions
from vitcx.runtime.engines.tensorrt.builder import build_plan
from vitcx.runtime.engines.tensorrt.library import Library, find_library
from vitcx.runtime.engines.tensorrt.profiles import Shapes
from vitcx.runtime.errors import InputError

TARGETS = ("8.0", "8.9", "12.0")
SHAPES = Shapes(encode_images=2, batch_size=4)
# Heads of 32, as in the real models: libraries have no fused attention for heads of 12. As few
# blocks as show a family's kinds, because torch takes seconds to export each: a ViT's last block
# attends from its prefix tokens alone, which is a kind of its own.
CHANGES = {
    "vit": {"embed_dim": 64, "depth": 2},
    "deit_distilled": {"embed_dim": 64, "depth": 2},
    # 7 windows a side and 2 heads in the first stage, then 4 and 4: timm's own form of attention
    # is not fused in the second.
    "swin": {"embed_dim": 64, "depths": (2, 2), "num_heads": (2, 4), "window_size": 7},
}
ATTENTIONS = {"vit": 2, "deit_distilled": 2, "swin": 4}
# DeiT's attention is ViT's: once with nodes is enough.
EXPORTS = [
    ("vit", "plain"),
    ("vit", "fused"),
    ("deit_distilled", "plain"),
    ("swin", "plain"),
    ("swin", "fused"),
]


@pytest.fixture(scope="session")
def library() -> Library:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx'")
    return find_library("tensorrt-rtx")


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Bundle]:
    """Of each family and way of writing attention, in float32."""
    folder = tmp_path_factory.mktemp("families")
    return {
        (family, attention): export_model(
            tiny.make(family, **CHANGES[family]),
            folder / f"{family}_{attention}",
            attention=attention,
        )
        for family, attention in EXPORTS
    }


def in_half(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle with its graph in float16, but for the normalisations and the softmax."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(
        onnx.load(bundle.model_path),
        keep_io_types=True,
        op_block_list=["LayerNormalization", "Softmax"],
    )
    onnx.save(model, folder / "model.onnx")
    return Bundle(folder, bundle.manifest)


def count(bundle: Bundle, operator: str) -> int:
    return sum(node.op_type == operator for node in onnx.load(bundle.model_path).graph.node)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "attention"), EXPORTS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_plan_is_built(
    family: str,
    attention: str,
    precision: str,
    library: Library,
    bundles: dict[tuple[str, str], Bundle],
    tmp_path: Path,
) -> None:
    bundle = bundles[family, attention]
    if precision == "fp16":
        bundle = in_half(bundle, tmp_path)
    built = build_plan(library, bundle, SHAPES, BuildOptions(compute_capabilities=TARGETS))
    assert built.plan[:4] == b"vtrt"
    assert built.report.attentions == ATTENTIONS[family]
    fused, profiles = built.report.fused, built.report.profiles
    assert fused is not None
    # TensorRT-RTX 1.7 has no fused kernel of float32, but for a last block's few queries. In fp16
    # it recognises plain attention too: one block of each family, in each profile, at the least.
    if precision == "fp32":
        assert fused <= profiles
    elif (family, attention) == ("swin", "fused"):
        assert fused == profiles * ATTENTIONS[family]
    else:
        assert profiles <= fused <= profiles * ATTENTIONS[family]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_attention_in_fp16_becomes_one_kernel(
    target: str, library: Library, bundles: dict[tuple[str, str], Bundle], tmp_path: Path
) -> None:
    bundle = in_half(bundles["vit", "plain"], tmp_path)
    options = BuildOptions(compute_capabilities=(target,))
    report = build_plan(library, bundle, SHAPES, options).report
    # The first block's, in each profile; the last block's few queries need not be.
    assert report.attentions == 2
    assert report.fused is not None
    assert report.profiles <= report.fused <= 2 * report.profiles


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_fused_attention_is_one_node_each(
    family: str, bundles: dict[tuple[str, str], Bundle]
) -> None:
    plain, fused = bundles[family, "plain"], bundles[family, "fused"]
    assert (plain.manifest.opset, fused.manifest.opset) == (20, 23)
    assert (count(plain, "Attention"), count(plain, "Softmax")) == (0, ATTENTIONS[family] + 1)
    assert (count(fused, "Attention"), count(fused, "Softmax")) == (ATTENTIONS[family], 1)
    onnx.checker.check_model(fused.model_path, full_check=True)
    assert onnx.load(fused.model_path).ir_version >= 11
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32)
    of_plain, of_fused = (
        onnxruntime.InferenceSession(b.model_path, providers=["CPUExecutionProvider"]).run(
            ["probabilities", "embedding"], {"images": images}
        )
        for b in (plain, fused)
    )
    # As between an export and torch: the order of summation differs.
    np.testing.assert_allclose(of_fused[0], of_plain[0], atol=1e-6)
    np.testing.assert_allclose(of_fused[1], of_plain[1], atol=2e-5 * np.abs(of_plain[1]).max())


def test_the_models_own_switches_are_put_back() -> None:
    model = tiny.make("swin")
    before = dict(model.layers[0].blocks[0].attn.__dict__)
    switches = [m for m in model.modules() if hasattr(m, "fused_attn")]
    assert [m.fused_attn for m in switches] == [False] * 4  # timm's default
    with _attention_of(model, "fused"):
        assert all(m.fused_attn for m in switches)
        assert "forward" in model.layers[0].blocks[0].attn.__dict__
    assert [m.fused_attn for m in switches] == [False] * 4
    assert model.layers[0].blocks[0].attn.__dict__ == before


@pytest.mark.parametrize("size", [64, 56])
def test_windows_as_heads_are_the_same_attention(size: int) -> None:
    """Padded, shifted and lone windows of an image, and several images."""
    model = tiny.make("swin", img_size=size)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(images)
        with _attention_of(model, "fused"):
            found = model(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_attention_that_is_not_torchs_cannot_be_fused(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return images.mean((2, 3)).softmax(-1), images[:, :, ::8, ::8]

    with pytest.raises(InputError, match="export it with plain attention"):
        write_onnx(Flat().eval(), (3, 64, 64), tmp_path, "fused")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="attention is 'flash', expected plain or fused"):
        export_model(tiny.make("vit"), tmp_path / "bundle", attention="flash")
