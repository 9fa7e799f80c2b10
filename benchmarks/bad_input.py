"""Requests, pictures and bundles that are wrong in one of many ways: made from a seed."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

# One mask, one pass: what turns out to be a picture after all costs next to nothing.
CHEAP: dict[str, Any] = {"method": "rise", "mask_count": 1}
_HUGE = int("9" * 400)
_VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 1e38, 1e39, 1e308, 0.5, -0.0, _HUGE, "",
    "x", "top5", "top0", "top999999999", "1", "\ud800", "\x00", "é" * 300, "[" * 5000, [], {}, [[]],
    [None], [1, "x"], {"a": 1}, {"seed": 1}, list(range(1000)), ["cat"] * 200,
]  # fmt: skip
_SETTINGS = (
    "method", "estimator", "distance_threshold", "noise_std", "seed", "cluster_masks", "debias",
    "coverage_correction", "mask_count", "window", "step", "hidden", "team_share", "preset", "more",
)  # fmt: skip
_FIELDS = ("image", "targets", "settings", "include", "masks", "strength", "\ud800", "more")
_LOCAL = b" HTTP/1.1\r\nHost: localhost\r\n"
_RAW_HEADS = [
    b"",
    b"\r\n" * 100,
    b"GET",
    b"GET /\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
    b"GET / HTTP/1.1\r\n\r\n",
    b"POST /v1/explain" + _LOCAL + b"Content-Length: -1\r\n\r\n",
    b"POST /v1/explain" + _LOCAL + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    b"POST /v1/explain" + _LOCAL + b"Transfer-Encoding: chunked\r\n\r\nZ\r\n",
    b"GET /%ff%00" + _LOCAL + b"\r\n",
    b"CONNECT a:1" + _LOCAL + b"\r\n",
    b"GET http://[" + _LOCAL + b"\r\n",
    b"OPTIONS *" + _LOCAL + b"\r\n",
    b"GET /" + _LOCAL + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /" + _LOCAL + b"X\r\n: y\r\n\r\n",
]


def photo(seed: int, size: tuple[int, int] = (96, 80), **how: Any) -> bytes:
    """A file of coloured blobs; `how` is Pillow's way to save it."""
    rng = np.random.default_rng(seed)
    blobs = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    picture = blobs.resize(size, Image.Resampling.BICUBIC)
    if mode := how.pop("mode", None):
        picture = picture.convert(mode)
    if how.pop("frames", None):
        how |= {"save_all": True, "append_images": [picture.rotate(90), picture.rotate(180)]}
    buffer = io.BytesIO()
    picture.save(buffer, **how)
    return buffer.getvalue()


def good_pictures() -> dict[str, bytes]:
    """A small file of each kind that is accepted and can be written here."""
    ways: dict[str, dict[str, Any]] = {
        "jpeg": {"format": "jpeg"},
        "jpeg progressive": {"format": "jpeg", "progressive": True},
        "jpeg cmyk": {"format": "jpeg", "mode": "CMYK"},
        "png": {"format": "png"},
        "png palette": {"format": "png", "mode": "P"},
        "png alpha": {"format": "png", "mode": "RGBA"},
        "png grey": {"format": "png", "mode": "L"},
        "apng": {"format": "png", "frames": True},
        "gif": {"format": "gif", "mode": "P"},
        "gif animated": {"format": "gif", "mode": "P", "frames": True},
        "bmp": {"format": "bmp"},
        "tiff": {"format": "tiff"},
        "tiff lzw": {"format": "tiff", "compression": "tiff_lzw"},
        "tiff deflate": {"format": "tiff", "compression": "tiff_deflate"},
        "tiff jpeg": {"format": "tiff", "compression": "jpeg"},
        "ppm": {"format": "ppm"},
        "webp": {"format": "webp"},
        "webp lossless": {"format": "webp", "lossless": True},
        "webp animated": {"format": "webp", "frames": True},
        "jpeg 2000": {"format": "jpeg2000"},
        "avif": {"format": "avif"},
    }
    needs = {"webp": "webp", "jpeg 2": "jpg_2000", "avif": "avif", "tiff ": "libtiff"}
    for prefix, feature in needs.items():
        if not features.check(feature):
            ways = {name: way for name, way in ways.items() if not name.startswith(prefix)}
    return {name: photo(i, **way) for i, (name, way) in enumerate(ways.items())}


def mutated(rng: random.Random, good: bytes, other: bytes) -> bytes:
    """A file cut, flipped, filled, doubled or crossed with another."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        at = rng.randrange(len(data))
        length = min(rng.choice((1, 2, 4, 16, 200)), len(data) - at)
        match rng.randrange(7):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + length] = rng.randbytes(length)
            case 2:
                data[at : at + length] = bytes([rng.choice((0, 1, 127, 128, 255))]) * length
            case 3:
                data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
            case 4:
                del data[at : at + length]
            case 5:
                start = rng.randrange(len(other))
                data[at : at + length] = other[start : start + length]
            case 6:
                early = rng.randrange(min(len(data), 64))  # sizes stand near the head
                data[early : early + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
        if not data:
            data += b"\0"
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)) + 1 :]
    return bytes(data)


def bad_request(rng: random.Random, good: bytes, model: str, size: int) -> bytes:
    """One HTTP request, head and body, that no client should send.

    Parameters
    ----------
    good : a picture's file, for requests that are wrong elsewhere.
    model, size : the name, and the pixels of a side, of the model that is served.
    """
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice(_RAW_HEADS) + rng.randbytes(rng.choice((0, 0, 40)))
    path, content = "/v1/explain", "application/json"
    if kind <= 2:
        body = _explain_json(rng, good)
    elif kind == 3:
        body, content = _form(rng, good)
    elif kind <= 5:
        path, body = f"/v2/models/{model}/infer", _tensors(rng, size)
    elif kind == 8:
        path, body = f"/v1/models/{model}:explain", _instances(rng, good, size)
    elif kind == 6:
        body = mutated(rng, _explain_json(rng, good), _tensors(rng, size))
    else:
        body = rng.randbytes(rng.choice((0, 1, 300, 70_000)))
        content = rng.choice(("image/png", "text/plain", "", "multipart/form-data", "x" * 3000))
        path = rng.choice(
            ("/v1/explain", "/v2/models/x/infer", "/", "/v1/classes", "/metrics", "/é")
        )
    method = rng.choice(("POST",) * 9 + ("GET", "PUT", "DELETE", "HEAD", "BREW"))
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Type: {content}"]
    head += [f"Content-Length: {len(body)}", "Connection: close"]
    if rng.random() < 0.2:
        head.append(rng.choice((
            "Accept: text/csv", "Accept: ;q=x", "Accept: */*;q=-1", "Origin: http://evil.example",
            "Inference-Header-Content-Length: 5", "Inference-Header-Content-Length: -1",
            "Inference-Header-Content-Length: 99999999999999999999", "Authorization: Bearer x",
            "Expect: 100-continue", "X-Request-ID: \x01", "Content-Encoding: gzip",
        )))  # fmt: skip
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def _explain_json(rng: random.Random, good: bytes) -> bytes:
    asked: dict[str, Any] = {"image": base64.b64encode(good).decode(), "settings": dict(CHEAP)}
    for _ in range(rng.choice((1, 1, 2))):
        value = rng.choice(_VALUES)
        if rng.random() < 0.5:
            asked["settings"] = {**CHEAP, rng.choice(_SETTINGS): value}
        else:
            names = (
                "image",
                "targets",
                "settings",
                "include",
                "masks",
                "strength",
                "\ud800",
                "more",
            )
            asked[rng.choice(names)] = value
    return _dump(asked)


def _instances(rng: random.Random, good: bytes, size: int) -> bytes:
    text = base64.b64encode(good).decode()
    forms: list[Any] = [
        {"image": text}, {"b64": text}, {"image_bytes": {"b64": text}}, [0.5] * (3 * size * size),
        {"image": rng.choice(_VALUES)}, {rng.choice(_FIELDS): text}, {"image": {"b64": 3}},
        rng.choice(_VALUES),
    ]  # fmt: skip
    asked: dict[str, Any] = {
        "instances": [rng.choice(forms) for _ in range(rng.choice((0, 1, 1, 2, 65)))],
        "settings": {**CHEAP, rng.choice(_SETTINGS): rng.choice(_VALUES)},
    }
    if rng.random() < 0.5:
        asked[rng.choice(("instances", *_FIELDS))] = rng.choice(_VALUES)
    return _dump(asked)


def _form(rng: random.Random, good: bytes) -> tuple[bytes, str]:
    body = b""
    names = ("image", "image", "targets", "settings", "masks", "strength", "include", "é", '"', "")
    for _ in range(rng.choice((1, 2, 3, 30))):
        name = rng.choice(names)
        file = '; filename="a"' if rng.random() < 0.6 else ""
        body += f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        value = rng.choice(_VALUES)
        body += rng.choice((good, _dump(value), b"[" * 5000, b"\xff", b"")) + b"\r\n"
    body += rng.choice((b"--b--\r\n", b"--b", b"", b"--c--\r\n"))
    kinds = ("b", "b", "b", "b", '"b"', "", "x" * 300, "b; charset=\x01")
    return body, f"multipart/form-data; boundary={rng.choice(kinds)}"


def _tensors(rng: random.Random, size: int) -> bytes:
    shape: Any = [1, 3, size, size]
    data: Any = [rng.choice((0, 0.5, -1e38, 1e38))] * (3 * size * size)
    if rng.random() < 0.7:
        pool = (-1, 0, 1, 3, size, 2**31, 2**62, "x", None, 1.5)
        shape = [rng.choice(pool) for _ in range(rng.randrange(6))]
        data = rng.choice(([], [1], "x", None, [None], [[1]], [1] * 3000, {}))
    tensor = {
        "name": rng.choice(("images", "images", "images", "targets", "other", 3)),
        "datatype": rng.choice(("FP32", "FP32", "FP32", "INT64", "INT32", "BYTES", 7)),
        "shape": shape,
        "data": data,
        "parameters": rng.choice(({}, {}, {}, {"binary_data_size": 3}, 5)),
    }
    targets = {
        "name": "targets",
        "datatype": rng.choice(("INT64", "INT32")),
        "shape": [1],
        "data": [rng.choice((0, 1, -1, 2**32 + 1, 2**63, 1.5, "x", _HUGE))],
    }
    outputs = [{"name": rng.choice(("saliency", "targets", "x"))}] * rng.choice((1, 1, 2, 3000))
    asked = {
        "inputs": [tensor, targets][: rng.choice((1, 2, 2))] * rng.choice((1, 1, 1, 3)),
        "parameters": {**CHEAP, rng.choice(_SETTINGS): rng.choice(_VALUES)},
        "outputs": outputs,
        "id": rng.choice(("a", 1, None, "\ud800")),
    }
    return _dump(asked)


def mutated_bundle(rng: random.Random, good: dict[str, bytes], folder: Path) -> None:
    """Write a bundle with one file damaged; half of the damaged graphs have a digest that fits.

    Parameters
    ----------
    good : the files of a bundle by name.
    """
    files = dict(good)
    name = rng.choice(sorted(files))
    if name == "manifest.json" and rng.random() < 0.6:
        manifest = json.loads(files[name])
        changed = rng.choice(sorted(manifest))
        manifest[changed] = rng.choice([*_VALUES, [2**40, 2**40], [0, 0], [-1], [1e308, 0.1, 0.1]])
        files[name] = _dump(manifest)
    else:
        files[name] = mutated(rng, files[name], files[rng.choice(sorted(files))])
        if name != "manifest.json" and rng.random() < 0.5:
            manifest = json.loads(files["manifest.json"])
            manifest["files"][name] = hashlib.sha256(files[name]).hexdigest()
            files["manifest.json"] = _dump(manifest)
    for file, data in files.items():
        (folder / file).write_bytes(data)
