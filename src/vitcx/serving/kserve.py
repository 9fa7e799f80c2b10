"""KServe's protocol, version 1: pictures as `instances`, answered with `explanations`.

An instance is a picture file in base64, ``{"image": "..."}``, ``{"b64": "..."}`` or
``{"image_bytes": {"b64": "..."}}`` as TensorFlow Serving has it, or the numbers of a normalised
(C,H,W) array, flat or nested. `targets`, `settings`, `include` and `masks` are those of
``/v1/explain``, the same for every instance.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.manifest import Manifest
from vitcx.runtime.pictures.decoders import DECODE_SECONDS
from vitcx.runtime.pictures.reading import EncodedPicture
from vitcx.runtime.targets import count_targets
from vitcx.serving import json_text
from vitcx.serving.answers import JSON, as_json
from vitcx.serving.answers import answer_bytes as bytes_of_one
from vitcx.serving.base64_text import read_base64
from vitcx.serving.limits import Limits
from vitcx.serving.open_inference import MOST_IMAGES, MOST_MAPS
from vitcx.serving.reading import Asked, make_asked

# A float32 as JSON has at most 23 characters, and a comma.
_TEXT_BYTES = 24
# What an explanation without `include` holds beside its summary: its map.
_INCLUDE = ["heatmap"]
_FORMS = (
    '{"image": BASE64}, {"b64": BASE64}, {"image_bytes": {"b64": BASE64}}, or the numbers of a '
    "normalised array"
)
# A list of at most so many: one more ends the parsing, before it takes any memory.
_Instances = msgspec.defstruct(
    "_Instances",
    [(f"instance_{i}", msgspec.Raw, msgspec.Raw()) for i in range(MOST_IMAGES)],
    array_like=True,
    forbid_unknown_fields=True,
)


class _Base64(msgspec.Struct, forbid_unknown_fields=True):
    b64: str


class _File(msgspec.Struct, forbid_unknown_fields=True):
    image: str | _Base64 | None = None
    image_bytes: str | _Base64 | None = None
    b64: str | None = None


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    instances: _Instances  # type: ignore[valid-type]
    targets: msgspec.Raw = msgspec.Raw()
    settings: msgspec.Raw = msgspec.Raw()
    include: msgspec.Raw = msgspec.Raw()
    masks: msgspec.Raw = msgspec.Raw()


_FIELDS = tuple(name for name in _Body.__struct_fields__ if name != "instances")


def decode(
    body: bytes | bytearray, explainer: Explainer, limits: Limits, preset: str | None = None
) -> list[Asked]:
    """Read a request: what is asked of each instance. Not for the event loop.

    The pictures of a request together have at most ``limits.pixels`` pixels: each of n has its
    share.

    Parameters
    ----------
    preset : the server's, for a request that names none.

    Raises
    ------
    InputError
        If it does not follow the protocol.
    """
    read = json_text.read(body, _Body, "the body")
    raws = [raw for raw in msgspec.structs.astuple(read.instances) if len(raw)]
    if not raws:
        raise InputError(f"'instances' is empty: give 1 to {MOST_IMAGES} pictures")
    given: dict[str, Any] = {"include": _INCLUDE}
    for name in _FIELDS:
        raw = getattr(read, name)
        if not json_text.unset(raw):
            given[name] = json_text.small(raw, f"'{name}'")
    json_text.refuse_repeated_keys(body, "the body")
    first = make_asked(None, given, explainer, limits, preset)
    maps = len(raws) * count_targets(first.request.targets)
    if maps > MOST_MAPS:
        raise InputError(
            f"{len(raws)} instances and their targets make {maps} maps: ask for at most {MOST_MAPS}"
        )
    pixels = limits.pixels // len(raws)
    return [
        replace(first, request=replace(first.request, image=_picture(raw, i, explainer, pixels)))
        for i, raw in enumerate(raws)
    ]


def _picture(raw: msgspec.Raw, index: int, explainer: Explainer, pixels: int) -> Any:
    name = f"instance {index}"
    start = bytes(memoryview(raw)[:1])
    if start == b"[":
        manifest = explainer.manifest
        shape = [manifest.input_channels, *manifest.input_size]
        array = json_text.numbers(raw, shape, f"the numbers of {name}")
        if not np.isfinite(array).all():
            raise InputError(f"{name} has values that are NaN or beyond a float32")
        return array
    if start != b"{":
        raise InputError(f"{name} is none of these: {_FORMS}")
    file = json_text.read(raw, _File, name)
    json_text.refuse_repeated_keys(raw, name)
    texts = [text for text in (file.image, file.image_bytes, file.b64) if text is not None]
    if len(texts) != 1:
        raise InputError(f"{name} is not one of these: {_FORMS}")
    text = texts[0].b64 if isinstance(texts[0], _Base64) else texts[0]
    data = read_base64(text, name)
    if not data:
        raise InputError(f"{name} is empty")
    return EncodedPicture(name, lambda: data, pixels, DECODE_SECONDS)


def answer_bytes(asked: list[Asked], manifest: Manifest) -> int:
    """The most bytes that the answer can have, known before any work is done."""
    scores = _TEXT_BYTES * manifest.num_classes
    return sum(bytes_of_one(each, JSON, manifest) + scores for each in asked)


def encode(asked: list[Asked], results: list[Explanation]) -> bytes:
    """The answer: every class's score, and the explanation, of each instance in order."""
    answer = {
        "predictions": [[float(score) for score in result.probabilities] for result in results],
        "explanations": [
            as_json(result, each) for result, each in zip(results, asked, strict=True)
        ],
    }
    return json.dumps(answer, ensure_ascii=False).encode()
