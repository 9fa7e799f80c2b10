"""A bundle small enough to explain a picture in milliseconds, written without torch.

A patch convolution is the embedding; the classes see its rectified mean over patches. It explains
nothing worth looking at: it is for tests of what happens around the model.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitcx.runtime.bundle import Bundle, read_bundle, write_manifest
from vitcx.runtime.digests import sha256_of
from vitcx.runtime.manifest import Manifest

SIZE, PATCH, CHANNELS, CLASSES = 32, 8, 6, 5
OPSET = 20


def make_manifest(**fields: Any) -> Manifest:
    """A manifest of a float32 model of tests; `fields` are what it says of that model."""
    defaults: dict[str, Any] = {
        "layer": "norm1",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "crop_fraction": 1.0,
        "crop_mode": "center",
        "interpolation": "bilinear",
        "distance_threshold": 0.1,
        "opset": OPSET,
        "precision": "fp32",
    }
    return Manifest(**defaults | fields)


def write_tiny_bundle(
    folder: Path,
    seed: int = 0,
    *,
    colours: int = 3,
    activation: str = "Softmax",
    teams: bool = False,
    **fields: Any,
) -> Bundle:
    """Write it to `folder`; needs the module onnx.

    Parameters
    ----------
    colours : channels of the input.
    activation : ONNX operator after the logits.
    teams : also write the graph that scores teams; the tokens are a prefix token, which counts for
        nothing, and the patches'.
    fields : of the manifest, that are not the usual ones.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((CHANNELS, colours, PATCH, PATCH)).astype(np.float32) / PATCH
    head = rng.standard_normal((CHANNELS, CLASSES)).astype(np.float32) * 3
    grid = SIZE // PATCH
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["embedding"], strides=[PATCH, PATCH]),
        helper.make_node("Relu", ["embedding"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
        helper.make_node(activation, ["logits"], ["probabilities"]),
    ]
    value = helper.make_tensor_value_info
    outputs = [
        value("probabilities", TensorProto.FLOAT, ["batch", CLASSES]),
        value("embedding", TensorProto.FLOAT, ["batch", CHANNELS, grid, grid]),
    ]
    weights = {"kernel": kernel, "head": head}
    if teams:
        nodes += _token_nodes(helper)
        weights |= {
            "rows": np.array([0, CHANNELS, grid * grid], np.int64),
            "padding": np.array([0, 1, 0, 0, 0, 0], np.int64),
        }
        outputs.append(value("tokens", TensorProto.FLOAT, ["batch", grid * grid + 1, CHANNELS]))
        fields.setdefault("token_grid", (grid, grid))

    def save(name: str, *graph: Any) -> None:
        model = helper.make_model(
            helper.make_graph(*graph),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=10,
        )
        onnx.save(model, str(folder / name))

    def tensors(values: dict[str, np.ndarray]) -> list[Any]:
        return [numpy_helper.from_array(array, name) for name, array in values.items()]

    folder.mkdir(parents=True, exist_ok=True)
    pixels = value("images", TensorProto.FLOAT, ["batch", colours, SIZE, SIZE])
    save("model.onnx", nodes, "tiny", [pixels], outputs, tensors(weights))
    names = ["model.onnx"]
    if teams:
        names.append("teams.onnx")
        inputs = [
            value("tokens", TensorProto.FLOAT, ["images", grid * grid + 1, CHANNELS]),
            value("pictures", TensorProto.INT64, ["batch"]),
            value("patches", TensorProto.INT64, ["batch", "kept"]),
        ]
        known = {"head": head, "one": np.array([1], np.int64), "last": np.array([-1], np.int64)}
        save(
            "teams.onnx",
            _team_nodes(helper, activation),
            "teams",
            inputs,
            outputs[:1],
            tensors(known),
        )
    manifest = make_manifest(
        model_name="tiny",
        source="random weights, for tests",
        layer_path="embedding",
        input_size=(SIZE, SIZE),
        grid=(grid, grid),
        channels=CHANNELS,
        class_names=("ant", "bee", "cat", "dog", "elk"),
        files={name: sha256_of(folder / name) for name in names},
        mean=(0.5,) * colours,
        std=(0.25,) * colours,
        **fields,
    )
    write_manifest(folder, manifest)
    return read_bundle(folder)


def _token_nodes(helper: Any) -> list[Any]:
    """The embedding as tokens, behind a prefix token of zeros."""
    return [
        helper.make_node("Reshape", ["embedding", "rows"], ["flat_patches"]),
        helper.make_node("Transpose", ["flat_patches"], ["patch_tokens"], perm=[0, 2, 1]),
        helper.make_node("Pad", ["patch_tokens", "padding"], ["tokens"]),
    ]


def _team_nodes(helper: Any, activation: str) -> list[Any]:
    """The rectified mean over the patches of each row, and the classes it gives."""
    return [
        helper.make_node("Gather", ["tokens", "pictures"], ["own"], axis=0),
        helper.make_node("Add", ["patches", "one"], ["places"]),
        helper.make_node("Unsqueeze", ["places", "last"], ["indices"]),
        helper.make_node("GatherND", ["own", "indices"], ["kept"], batch_dims=1),
        helper.make_node("Relu", ["kept"], ["active"]),
        helper.make_node("ReduceMean", ["active", "one"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["logits"]),
        helper.make_node(activation, ["logits"], ["probabilities"]),
    ]


def add_encoder(bundle: Bundle, encoder: Bundle) -> Bundle:
    """A bundle beside `encoder`'s folder that scores with the first one and encodes with it."""
    folder = encoder.path.with_name(f"{encoder.path.name} mixed")
    folder.mkdir()
    shutil.copyfile(bundle.model_path, folder / "model.onnx")
    shutil.copyfile(encoder.model_path, folder / "encoder.onnx")
    if bundle.has_teams:
        shutil.copyfile(bundle.teams_path, folder / "teams.onnx")
    files = {path.name: sha256_of(path) for path in folder.iterdir()}
    write_manifest(folder, replace(bundle.manifest, files=files))
    return read_bundle(folder)


def random_picture(seed: int, size: tuple[int, int] = (40, 36)) -> np.ndarray:
    """(H,W,3) uint8 blobs, so that the masks differ from one another and between pictures."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)
    rows = np.arange(size[0]) * 5 // size[0]
    columns = np.arange(size[1]) * 5 // size[1]
    return np.ascontiguousarray(coarse[rows][:, columns])
