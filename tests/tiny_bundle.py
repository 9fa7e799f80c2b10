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

from vitcx.runtime.bundle import Bundle, Manifest, read_bundle, write_manifest
from vitcx.runtime.digests import sha256_of

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
    **fields: Any,
) -> Bundle:
    """Write it to `folder`; needs the module onnx.

    Parameters
    ----------
    colours : channels of the input.
    activation : ONNX operator after the logits.
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
    graph = helper.make_graph(
        nodes,
        "tiny",
        [value("images", TensorProto.FLOAT, ["batch", colours, SIZE, SIZE])],
        [
            value("probabilities", TensorProto.FLOAT, ["batch", CLASSES]),
            value("embedding", TensorProto.FLOAT, ["batch", CHANNELS, grid, grid]),
        ],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(head, "head")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"))
    manifest = make_manifest(
        model_name="tiny",
        source="random weights, for tests",
        layer_path="embedding",
        input_size=(SIZE, SIZE),
        grid=(grid, grid),
        channels=CHANNELS,
        class_names=("ant", "bee", "cat", "dog", "elk"),
        files={"model.onnx": sha256_of(folder / "model.onnx")},
        mean=(0.5,) * colours,
        std=(0.25,) * colours,
        **fields,
    )
    write_manifest(folder, manifest)
    return read_bundle(folder)


def add_encoder(bundle: Bundle, encoder: Bundle) -> Bundle:
    """A bundle beside `encoder`'s folder that scores with the first one and encodes with it."""
    folder = encoder.path.with_name(f"{encoder.path.name} mixed")
    folder.mkdir()
    shutil.copyfile(bundle.model_path, folder / "model.onnx")
    shutil.copyfile(encoder.model_path, folder / "encoder.onnx")
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
