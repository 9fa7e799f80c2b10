"""The Open Inference Protocol, version 2, with Triton's binary tensors.

The model takes ``images`` (FP32 (N,3,H,W), normalised) and, if wanted, ``targets`` (INT64 (T)), the
same for every picture; settings are request parameters. It gives ``probabilities`` FP32 (N,C),
``targets`` INT64 (N,T) and ``saliency`` FP32 (N,T,H,W).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.bundle import Manifest
from vitcx.runtime.errors import InputError
from vitcx.runtime.explanation import Explanation

MOST_IMAGES = 64
# Images times targets of one request: the answer holds a map for each, as text if that is wanted.
MOST_MAPS = 256
_DTYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "INT64": np.dtype("<i8"),
    "INT32": np.dtype("<i4"),
}
OUTPUTS = {"probabilities": "FP32", "targets": "INT64", "saliency": "FP32"}


@dataclass(frozen=True)
class Call:
    """A decoded request: images, targets, settings, and which outputs are wanted in which form."""

    id: str | None
    images: NDArray[np.float32]
    targets: list[int] | None
    settings: dict[str, Any]
    outputs: list[tuple[str, bool]]


def metadata(name: str, manifest: Manifest) -> dict[str, Any]:
    """What a client asks for to learn names, types and shapes; -1 is any."""
    images = [-1, manifest.input_channels, *manifest.input_size]
    height, width = manifest.input_size
    return {
        "name": name,
        "versions": ["1"],
        "platform": "vitcx",
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


def decode(body: bytes, header_length: str | None) -> Call:
    """Read a request, JSON or with binary tensors after the JSON.

    Raises
    ------
    InputError
        If it does not follow the protocol.
    """
    end = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or len(header_length) > 12 or int(header_length) > end:
            raise InputError("Inference-Header-Content-Length does not fit the body")
        end = int(header_length)
    try:
        head = json.loads(body[:end])
    except (ValueError, RecursionError):
        raise InputError("the request is not JSON") from None
    if not isinstance(head, dict) or not isinstance(head.get("inputs"), list):
        raise InputError("the request has no list 'inputs'")
    rest = memoryview(body)[end:]
    tensors: dict[str, NDArray[Any]] = {}
    for described in head["inputs"]:
        name, values, rest = _tensor(described, rest)
        if name not in ("images", "targets") or name in tensors:
            raise InputError(f"the input {name[:50]!r} is unknown or given twice")
        tensors[name] = values
    if len(rest):
        raise InputError("there are bytes left over after the binary inputs")
    images, targets = tensors.get("images"), tensors.get("targets")
    if images is None or images.dtype != np.float32 or images.ndim != 4:
        raise InputError("the input 'images' is missing or not FP32 (N,3,H,W)")
    if not 1 <= len(images) <= MOST_IMAGES:
        raise InputError(f"give 1 to {MOST_IMAGES} images in a request")
    if targets is not None and (targets.ndim != 1 or targets.dtype.kind != "i"):
        raise InputError("the input 'targets' is not INT64 (T)")
    if targets is not None and len(images) * len(targets) > MOST_MAPS:
        raise InputError(f"{len(images)} images times {len(targets)} targets: at most {MOST_MAPS}")
    parameters = head.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InputError("'parameters' is not an object")
    settings = {k: v for k, v in parameters.items() if k != "binary_data_output"}
    binary = bool(parameters.get("binary_data_output", False))
    identity = head.get("id")
    return Call(
        identity if isinstance(identity, str) else None,
        np.ascontiguousarray(images),
        None if targets is None else [int(t) for t in targets],
        settings,
        _wanted(head.get("outputs"), binary),
    )


def _wanted(outputs: Any, binary: bool) -> list[tuple[str, bool]]:
    if outputs is None:
        return [(name, binary) for name in OUTPUTS]
    if not isinstance(outputs, list):
        raise InputError("'outputs' is not a list")
    wanted = []
    for output in outputs:
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str) or name not in OUTPUTS:
            raise InputError(f"the outputs are {', '.join(OUTPUTS)}")
        parameters = output.get("parameters")
        own = parameters.get("binary_data", binary) if isinstance(parameters, dict) else binary
        wanted.append((name, bool(own)))
    return wanted


def _tensor(described: Any, rest: memoryview) -> tuple[str, NDArray[Any], memoryview]:
    if not isinstance(described, dict):
        raise InputError("an input is not an object")
    name, shape = described.get("name"), described.get("shape")
    dtype = _DTYPES.get(str(described.get("datatype")))
    if not isinstance(name, str) or dtype is None:
        raise InputError("an input needs a name and a datatype of FP32 (images), INT64 (targets)")
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
        raise InputError(f"the shape of {name[:50]!r} is not a list of sizes")
    if len(shape) > 8 or math.prod(shape) > 1 << 28:
        raise InputError(f"the shape of {name[:50]!r} is too large")
    parameters = described.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None:
        if type(size) is not int or size != math.prod(shape) * dtype.itemsize or size > len(rest):
            raise InputError(f"the binary data of {name[:50]!r} does not have its shape's size")
        values: NDArray[Any] = np.frombuffer(rest[:size], dtype)
        rest = rest[size:]
    else:
        try:
            # Whole numbers as they came first: NumPy would cut others to whole ones.
            data = np.asarray(described.get("data"), None if dtype.kind == "i" else dtype)
            values = data.astype(dtype, copy=False).ravel()
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"the data of {name[:50]!r} are not numbers") from None
        if dtype.kind == "i" and data.size and data.dtype.kind not in "iu":
            raise InputError(f"the data of {name[:50]!r} are not whole numbers")
    if values.size != math.prod(shape):
        raise InputError(f"the data of {name[:50]!r} do not fill its shape {shape}")
    return name, values.reshape(shape), rest


def encode(model: str, call: Call, results: list[Explanation]) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON part if binary tensors follow."""
    arrays: dict[str, NDArray[Any]] = {
        "probabilities": np.stack([r.probabilities for r in results]),
        "targets": np.asarray([r.targets for r in results], dtype=np.int64),
        "saliency": np.stack([r.saliency for r in results]),
    }
    described: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, binary in call.outputs:
        values = arrays[name]
        entry: dict[str, Any] = {
            "name": name,
            "datatype": OUTPUTS[name],
            "shape": list(values.shape),
        }
        if binary:
            blobs.append(values.astype(_DTYPES[OUTPUTS[name]]).tobytes())
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = values.ravel().tolist()
        described.append(entry)
    answer: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": described}
    if call.id is not None:
        answer["id"] = call.id
    head = json.dumps(answer).encode()
    return b"".join([head, *blobs]), len(head) if blobs else None
