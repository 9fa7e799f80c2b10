"""ONNX files as people have them: families, exporting programs, simplifiers, precisions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from vitcx.export.timm_import import import_timm

CLASSES = 7
_VIT = {"depth": 3, "embed_dim": 24, "num_heads": 2, "img_size": 64, "num_classes": CLASSES}
_SWIN = {
    "depths": (1, 2, 1),
    "embed_dim": 16,
    "num_heads": (1, 2, 2),
    "window_size": 5,
    "img_size": 64,
    "num_classes": CLASSES,
}
_TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", _VIT),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", _VIT),
    "deit3": ("deit3_small_patch16_224", _VIT),
    "vit_registers": ("vit_small_patch14_reg4_dinov2", {**_VIT, "img_size": 56}),
    "vit_pooled": ("vit_medium_patch16_gap_240", _VIT),
    "beit": ("beit_base_patch16_224", _VIT),
    "eva02": ("eva02_tiny_patch14_224", {**_VIT, "img_size": 56}),
    "siglip": ("vit_base_patch16_siglip_224", _VIT),
    "swin": ("swin_tiny_patch4_window7_224", _SWIN),
    "swinv2": ("swinv2_tiny_window8_256", {**_SWIN, "window_size": 4}),
    "pvt_v2": (
        "pvt_v2_b0",
        {
            "depths": (1, 1, 2, 1),
            "embed_dims": (8, 16, 24, 32),
            "num_heads": (1, 2, 3, 4),
            "num_classes": CLASSES,
        },
    ),
    "xcit": ("xcit_nano_12_p16_224", {**_VIT, "num_heads": 4}),
}
_HUGGING_FACE = {
    "hf_vit": ("ViTConfig", "ViTForImageClassification", {}),
    "hf_deit_teacher": ("DeiTConfig", "DeiTForImageClassificationWithTeacher", {}),
    "hf_beit": ("BeitConfig", "BeitForImageClassification", {}),
    "hf_dinov2": ("Dinov2Config", "Dinov2ForImageClassification", {}),
    "hf_swin": (
        "SwinConfig",
        "SwinForImageClassification",
        {"embed_dim": 16, "depths": [1, 2, 1], "num_heads": [1, 2, 2], "window_size": 4},
    ),
}
FAMILIES = (*_TIMM, *_HUGGING_FACE)


def make_model(family: str) -> nn.Module:
    """A small model in evaluation mode that gives logits (B,C), always with the same weights."""
    torch.manual_seed(0)
    if family in _TIMM:
        name, arguments = _TIMM[family]
        model: nn.Module = import_timm().create_model(name, **arguments)
    else:
        model = _Logits(_hugging_face(family))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def side_of(family: str) -> int:
    """The side of a family's pictures in pixels."""
    return int(_TIMM.get(family, ("", {}))[1].get("img_size", 64))


def _hugging_face(family: str) -> nn.Module:
    import_timm()  # transformers imports torchvision, which may need its remedy
    import transformers

    config, model, arguments = _HUGGING_FACE[family]
    common = {
        "image_size": 64,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "num_labels": CLASSES,
    }
    if family == "hf_swin":
        common = {"image_size": 64, "num_labels": CLASSES}
    made: nn.Module = getattr(transformers, model)(
        getattr(transformers, config)(**common, **arguments)
    )
    return made


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


class Bytes(nn.Module):
    """(B,H,W,3) uint8 to the logits of a model that wants normalised pictures."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        values = images.float() / 255
        values = (values - self.get_buffer("mean")) / self.get_buffer("std")
        logits: Tensor = self.model(values.permute(0, 3, 1, 2))
        return logits


class LastChannel(nn.Module):
    """(B,H,W,3) float to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.permute(0, 3, 1, 2))
        return logits


class Ended(nn.Module):
    """A model with an activation at its end, or more outputs."""

    def __init__(self, model: nn.Module, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.end = model, end

    def forward(self, images: Tensor) -> Any:
        return self.end(self.model(images))


@dataclass(frozen=True)
class Recipe:
    """How a file is made of a model.

    Attributes
    ----------
    exporter : "dynamo" or "torchscript".
    opset : of the graph.
    fixed_batch : the batch is 1 and stays so.
    all_axes : every axis of the input is called dynamic, as Optimum has it.
    """

    exporter: str = "dynamo"
    opset: int = 18
    fixed_batch: bool = False
    all_axes: bool = False
    outputs: tuple[str, ...] = ("logits",)
    input_name: str = "pixel_values"


def write(model: nn.Module, path: Path, shape: tuple[int, ...], recipe: Recipe) -> None:
    """Export `model`, which takes (B, *shape), to `path`."""
    dtype = torch.uint8 if shape[-1] == 3 and isinstance(model, Bytes) else torch.float32
    example = torch.zeros(1 if recipe.fixed_batch else 2, *shape, dtype=dtype)
    common: dict[str, Any] = {
        "input_names": [recipe.input_name],
        "output_names": list(recipe.outputs),
        "opset_version": recipe.opset,
        "verbose": False,
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if recipe.exporter == "dynamo":
            axes = None if recipe.fixed_batch else ({0: torch.export.Dim("batch")},)
            torch.onnx.export(
                model, (example,), path, dynamo=True, dynamic_shapes=axes, external_data=False,
                **common,
            )  # fmt: skip
        else:
            names = {0: "batch"}
            if recipe.all_axes:
                names |= {1: "num_channels", 2: "height", 3: "width"}
            dynamic = {recipe.input_name: names, recipe.outputs[0]: {0: "batch"}}
            torch.onnx.export(
                model, (example,), path, dynamo=False,
                dynamic_axes={} if recipe.fixed_batch else dynamic, **common,
            )  # fmt: skip


def simplify(path: Path) -> None:
    """Let onnxslim simplify a file in place."""
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(path)), path)


def halve(path: Path) -> None:
    """Turn a file's weights and arithmetic to float16 in place, its input and output too."""
    from onnx import TensorProto, numpy_helper

    model = onnx.load(path)
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                values = numpy_helper.to_array(attribute.t).astype(np.float16)
                attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]
    onnx.save(model, path)
