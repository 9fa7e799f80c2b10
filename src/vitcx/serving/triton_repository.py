"""A bundle's graphs as models of a Triton repository: config.pbtxt, labels and version 1.

The scorer gives probabilities: what a predictor needs. The encoder gives the embedding, and tokens
where there are teams, and the third graph scores teams: what a program needs that explains on
Triton. Each is a model of its own, because Triton's ONNX Runtime backend computes every output that
a configuration lists.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from vitcx.runtime.bundle import Bundle
from vitcx.runtime.errors import BundleError, InputError
from vitcx.runtime.graph_interface import (
    GraphTensor,
    Interface,
    check_interface,
    interfaces_of,
)
from vitcx.runtime.manifest import MODEL_NAME, PROBABILITIES, Manifest
from vitcx.runtime.onnx_files import external_files
from vitcx.runtime.onnx_runtime import import_onnxruntime, interface_of_session, open_on_cpu

CONFIG_NAME, LABELS_NAME, VERSION = "config.pbtxt", "labels.txt", "1"
_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class TritonModel:
    """One model of the repository.

    Attributes
    ----------
    name : of the model and its folder.
    graph : the file of its graph.
    interface : what Triton's clients give it and get.
    max_batch_size : rows of one pass; 0 where Triton must not join requests.
    """

    name: str
    graph: Path
    interface: Interface
    max_batch_size: int


def model_name(manifest: Manifest, given: str | None = None) -> str:
    """The name of the model: `given`, or the bundle's with ``_`` for what no folder should have.

    Raises
    ------
    InputError
        If `given` cannot be a model's name.
    """
    if given is None:
        return re.sub(r"[^A-Za-z0-9_.-]|^[.-]", "_", manifest.model_name)
    if not _NAME.fullmatch(given):
        raise InputError(
            f"{given!r} cannot be a model's name: take letters, digits, '_', '-' and '.'"
        )
    return given


def models_of(
    bundle: Bundle, name: str, max_batch_size: int, *, all_graphs: bool = False
) -> list[TritonModel]:
    """The models that a bundle makes. Opens its graphs with ONNX Runtime, to read their sizes.

    Parameters
    ----------
    name : of the scorer; the others are called ``NAME_encoder`` and ``NAME_teams``.
    max_batch_size : of the scorer and the encoder.
    all_graphs : the encoder and the scorer of teams too.

    Raises
    ------
    BundleError
        If a graph is not what the manifest says.
    MissingExtraError
        If ONNX Runtime is not installed.
    """
    scores, encodes, teams = interfaces_of(bundle)
    scorer = _only(_read(bundle.model_path, scores), [PROBABILITIES])
    made = [TritonModel(name, bundle.model_path, scorer, max_batch_size)]
    if not all_graphs:
        return made
    path = bundle.encoder.model_path
    made.append(TritonModel(f"{name}_encoder", path, _read(path, encodes), max_batch_size))
    if teams is not None:
        path = bundle.teams_path
        # Rows of one request share its pictures' tokens: requests cannot be joined.
        made.append(TritonModel(f"{name}_teams", path, _read(path, teams), 0))
    return made


def _read(path: Path, expected: Interface) -> Interface:
    """The interface of a graph, with its sizes, in the order of `expected`."""
    onnxruntime = import_onnxruntime("a Triton repository")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = open_on_cpu(onnxruntime, path, options)
    except Exception as error:  # its errors have no common type
        raise BundleError(f"ONNX Runtime cannot open '{path}': {error}") from None
    found = interface_of_session(session)
    check_interface(f"'{path}'", found, expected)
    return Interface(found.inputs, _only(found, [t.name for t in expected.outputs]).outputs)


def _only(interface: Interface, outputs: list[str]) -> Interface:
    return Interface(interface.inputs, tuple(t for t in interface.outputs if t.name in outputs))


def write_model(model: TritonModel, folder: Path, manifest: Manifest) -> None:
    """Fill the empty folder of a model.

    Parameters
    ----------
    manifest : of the bundle: class names, and how pictures are normalised.
    """
    version = folder / VERSION
    version.mkdir()
    shutil.copyfile(model.graph, version / MODEL_NAME)
    for name in sorted(external_files(model.graph)):
        shutil.copyfile(model.graph.parent / name, version / name)
    names = [" ".join(name.split()) for name in manifest.class_names]
    (folder / LABELS_NAME).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    (folder / CONFIG_NAME).write_text(config_text(model, manifest), encoding="utf-8")


def config_text(model: TritonModel, manifest: Manifest) -> str:
    """The model's config.pbtxt."""
    lines = [
        "# Written by `vitcx triton`. Pictures are float32 (channels, height, width), normalised:",
        f"# (value / 255 - mean) / std, mean {_list(manifest.mean)}, std {_list(manifest.std)}.",
        f'name: "{model.name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {model.max_batch_size}",
    ]
    for word, tensors in (("input", model.interface.inputs), ("output", model.interface.outputs)):
        for tensor in tensors:
            lines += _tensor(word, tensor, batched=model.max_batch_size > 0)
    if model.max_batch_size > 0:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def _tensor(word: str, tensor: GraphTensor, *, batched: bool) -> list[str]:
    sizes = tensor.shape[1:] if batched else tensor.shape
    dims = ", ".join("-1" if size is None else str(size) for size in sizes)
    labels = [f'  label_filename: "{LABELS_NAME}"'] if tensor.name == PROBABILITIES else []
    return [
        f"{word} {{",
        f'  name: "{tensor.name}"',
        f"  data_type: {_TYPES[tensor.dtype]}",
        f"  dims: [ {dims} ]",
        *labels,
        "}",
    ]


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
