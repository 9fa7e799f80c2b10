"""The Open Inference Protocol, version 2, with Triton's binary tensors.

The model takes ``images`` (FP32 (N,3,H,W), normalised) and, if wanted, ``targets`` (INT64 (T)), the
same for every picture; settings are request parameters. It gives ``probabilities`` FP32 (N,C),
``targets`` INT64 (N,T) and ``saliency`` FP32 (N,T,H,W).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.errors import InputError
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.manifest import Manifest
from vitcx.runtime.presets import DEFAULT_PRESET
from vitcx.serving import json_text

MOST_IMAGES = 64
# Images times targets of one request: the answer holds a map for each, as text if that is wanted.
MOST_MAPS = 256
_DTYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "INT64": np.dtype("<i8"),
    "INT32": np.dtype("<i4"),
}
OUTPUTS = {"probabilities": "FP32", "targets": "INT64", "saliency": "FP32"}
# A float32 as JSON has at most 23 characters, and a comma.
_TEXT_BYTES = 24
# Numbers of an answer are turned into text in pieces, so that other threads get their turns.
_PIECE = 1 << 14


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: msgspec.Raw
    parameters: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()


class _Inputs(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A list of one or two tensors: a third one ends the parsing."""

    first: _Tensor
    second: _Tensor | None = None


class _Head(msgspec.Struct):
    inputs: msgspec.Raw
    id: msgspec.Raw = msgspec.Raw()
    parameters: msgspec.Raw = msgspec.Raw()
    outputs: msgspec.Raw = msgspec.Raw()


@dataclass(frozen=True)
class Call:
    """A decoded request: images, targets, settings, and which outputs are wanted in which form."""

    id: str | None
    images: NDArray[np.float32]
    targets: list[int] | None
    settings: dict[str, Any]
    outputs: dict[str, bool]


def metadata(name: str, manifest: Manifest, preset: str | None = None) -> dict[str, Any]:
    """What a client asks for to learn names, types and shapes; -1 is any.

    Parameters
    ----------
    preset : of requests that name none; None is the default one.
    """
    images = [-1, manifest.input_channels, *manifest.input_size]
    height, width = manifest.input_size
    return {
        "name": name,
        "versions": ["1"],
        "platform": "vitcx",
        # Of a request that gives none of its own.
        "parameters": {"preset": preset or DEFAULT_PRESET},
        "inputs": [
            {
                "name": "images",
                "datatype": "FP32",
                "shape": images,
            },
            {"name": "targets", "datatype": "INT64", "shape": [-1]},
        ],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, manifest.num_classes]},
            {"name": "targets", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "saliency", "datatype": "FP32", "shape": [-1, -1, height, width]},
        ],
    }


def decode(body: bytes | bytearray, header_length: str | None) -> Call:
    """Read a request, JSON or with binary tensors after the JSON. Not for the event loop.

    Raises
    ------
    InputError
        If it does not follow the protocol.
    """
    end = len(body)
    if header_length is not None:
        fits = header_length.isascii() and header_length.isdecimal() and len(header_length) <= 12
        if not fits or int(header_length) > end:
            raise InputError("Inference-Header-Content-Length does not fit the body")
        end = int(header_length)
    view = memoryview(body)
    head = json_text.read(view[:end], _Head, "the request")
    json_text.refuse_repeated_keys(view[:end], "the request")
    inputs = json_text.read(head.inputs, _Inputs, "'inputs'")
    json_text.refuse_repeated_keys(head.inputs, "an input")
    rest = view[end:]
    tensors: dict[str, NDArray[Any]] = {}
    for described in (inputs.first, inputs.second):
        if described is None:
            continue
        name = described.name
        if name not in ("images", "targets") or name in tensors:
            raise InputError(f"the input {name[:50]!r} is unknown or given twice")
        tensors[name], rest = _tensor(described, rest)
    if len(rest):
        raise InputError("there are bytes left over after the binary inputs")
    images, targets = tensors.get("images"), tensors.get("targets")
    if images is None or images.dtype != np.float32 or images.ndim != 4:
        raise InputError("the input 'images' is missing or not FP32 (N,3,H,W)")
    if len(images) > MOST_IMAGES:
        raise InputError(f"give 1 to {MOST_IMAGES} images in a request")
    if not np.isfinite(images).all():
        raise InputError("the input 'images' has values that are NaN or beyond a float32")
    if targets is not None and (targets.ndim != 1 or targets.dtype.kind != "i"):
        raise InputError("the input 'targets' is not INT64 (T)")
    if targets is not None and len(images) * len(targets) > MOST_MAPS:
        raise InputError(f"{len(images)} images times {len(targets)} targets: at most {MOST_MAPS}")
    parameters = _object(head.parameters, "'parameters'")
    binary = bool(parameters.pop("binary_data_output", False))
    identity = None if json_text.unset(head.id) else json_text.small(head.id, "'id'")
    return Call(
        identity if isinstance(identity, str) else None,
        np.ascontiguousarray(images),
        None if targets is None else [int(t) for t in targets],
        parameters,
        _wanted(head.outputs, binary),
    )


def _object(raw: msgspec.Raw, what: str) -> dict[str, Any]:
    value = {} if json_text.unset(raw) else json_text.small(raw, what)
    if not isinstance(value, dict):
        raise InputError(f"{what} is not an object")
    return value


def _wanted(raw: msgspec.Raw, binary: bool) -> dict[str, bool]:
    if json_text.unset(raw):
        return dict.fromkeys(OUTPUTS, binary)
    outputs = json_text.small(raw, "'outputs'")
    if not isinstance(outputs, list):
        raise InputError("'outputs' is not a list")
    wanted: dict[str, bool] = {}
    for output in outputs:
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str) or name not in OUTPUTS:
            raise InputError(f"the outputs are {', '.join(OUTPUTS)}")
        if name in wanted:
            raise InputError(f"the output {name!r} is asked for twice")
        parameters = output.get("parameters")
        own = parameters.get("binary_data", binary) if isinstance(parameters, dict) else binary
        wanted[name] = bool(own)
    return wanted


def _tensor(described: _Tensor, rest: memoryview) -> tuple[NDArray[Any], memoryview]:
    name = described.name
    dtype = _DTYPES.get(described.datatype)
    if dtype is None:
        raise InputError(f"the datatype of {name!r} is not FP32 (images) or INT64 (targets)")
    shape = json_text.small(described.shape, f"the shape of {name!r}")
    if not isinstance(shape, list) or not 1 <= len(shape) <= 8:
        raise InputError(f"the shape of {name!r} is not a list of sizes")
    if any(type(n) is not int or not 1 <= n <= 1 << 28 for n in shape):
        raise InputError(f"the shape of {name!r} has a size that is not 1 to 2^28")
    count = math.prod(shape)
    parameters = _object(described.parameters, f"'parameters' of {name!r}")
    size = parameters.get("binary_data_size")
    if size is not None:
        if type(size) is not int or size != count * dtype.itemsize or size > len(rest):
            raise InputError(f"the binary data of {name!r} does not have its shape's size")
        return np.frombuffer(rest[:size], dtype).reshape(shape), rest[size:]
    if json_text.unset(described.data):
        raise InputError(f"the input {name!r} has no data")
    what = f"the data of {name!r}"
    if dtype.kind == "f":
        return json_text.numbers(described.data, shape, what), rest
    whole = json_text.small(described.data, what)
    limits = np.iinfo(dtype)
    if not isinstance(whole, list) or any(type(n) is not int for n in whole):
        raise InputError(f"{what} are not whole numbers in a flat list")
    if any(not limits.min <= n <= limits.max for n in whole):
        raise InputError(f"{what} do not fit {described.datatype}")
    if len(whole) != count:
        raise InputError(f"{what} do not fill its shape {shape}")
    return np.asarray(whole, dtype).reshape(shape), rest


def answer_bytes(call: Call, manifest: Manifest) -> int:
    """The most bytes that the answer can have, known before any work is done."""
    targets = len(call.images) * (1 if call.targets is None else len(call.targets))
    values = {
        "probabilities": len(call.images) * manifest.num_classes,
        "targets": targets,
        "saliency": targets * math.prod(manifest.input_size),
    }
    each = (values[name] * (8 if raw else _TEXT_BYTES) for name, raw in call.outputs.items())
    return sum(each)


def encode(model: str, call: Call, results: list[Explanation]) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON part if binary tensors follow."""
    described: list[bytes] = []
    blobs: list[bytes] = []
    for name, binary in call.outputs.items():
        values = _values(name, results)
        kind = OUTPUTS[name]
        entry = json.dumps({"name": name, "datatype": kind, "shape": list(values.shape)}).encode()
        if binary:
            blobs.append(values.astype(_DTYPES[kind]).tobytes())
            last = b'"parameters":{"binary_data_size":%d}}' % len(blobs[-1])
        else:
            last = b'"data":[' + b",".join(_texts(values)) + b"]}"
        described.append(entry[:-1] + b"," + last)
    answer: dict[str, Any] = {"model_name": model, "model_version": "1"}
    if call.id is not None:
        answer["id"] = call.id
    start = json.dumps(answer).encode()[:-1] + b',"outputs":['
    head = start + b",".join(described) + b"]}"
    return b"".join([head, *blobs]), len(head) if blobs else None


def _values(name: str, results: list[Explanation]) -> NDArray[Any]:
    if name == "targets":
        return np.asarray([r.targets for r in results], dtype=np.int64)
    return np.stack([getattr(r, name) for r in results])


def _texts(values: NDArray[Any]) -> Iterator[bytes]:
    """The numbers of an array as JSON text, in pieces."""
    flat = values.ravel()
    for start in range(0, len(flat), _PIECE):
        yield msgspec.json.encode(flat[start : start + _PIECE].tolist())[1:-1]
