"""What clients send, read: base64, forms, JSON, tensors, and how large an answer would be."""

from __future__ import annotations

import base64
import json
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest

import vitcx
from tests.serving.running import png
from tests.tiny_bundle import SIZE
from vitcx.runtime.errors import InputError
from vitcx.serving import json_text, open_inference
from vitcx.serving.answers import JSON, NPZ, answer_bytes, render
from vitcx.serving.base64_text import read_base64
from vitcx.serving.forms import MOST_FIELD_BYTES, read_form
from vitcx.serving.limits import Limits, Refused
from vitcx.serving.reading import check_answer, read_asked

PICTURE = png()
TEXT = base64.b64encode(PICTURE).decode()


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        TEXT.rstrip("="),
        "data:image/png;base64," + TEXT,
        "DATA:image/png;charset=x;BASE64," + TEXT,
        base64.encodebytes(PICTURE).decode(),
        base64.encodebytes(PICTURE).decode().replace("\n", "\r\n"),
        base64.urlsafe_b64encode(PICTURE).decode(),
        base64.urlsafe_b64encode(PICTURE).decode().rstrip("="),
    ],
    ids=["plain", "unpadded", "data URL", "odd data URL", "lines", "CRLF", "URL-safe", "JWT"],
)
def test_base64_is_read_as_programs_and_browsers_write_it(text: str) -> None:
    assert read_base64(text, "'image'") == PICTURE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("%%%", "is not base64"),
        ("A", "is not base64"),
        ("AAAA=AAA", "is not base64"),
        ("data:image/png,AAAA", "a data URL without ';base64,'"),
        ("data:image/png;base64", "a data URL without ';base64,'"),
        ("AAAé", "letters beyond ASCII"),
    ],
)
def test_what_is_not_base64_is_told(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_base64(text, "'image'")


def form(*parts: tuple[str, str | None, bytes], boundary: str = "b0") -> bytes:
    """A form; a part is its name, its file's name or None, and its content."""
    body = b""
    for name, file, content in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
        body += f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
        body += content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


KIND = "multipart/form-data; boundary=b0"


def test_a_form_is_read() -> None:
    body = form(("image", "a.png", PICTURE), ("targets", None, "héron".encode()))
    assert read_form(body, KIND) == (PICTURE, {"targets": "héron"})
    assert read_form(body, 'multipart/form-data; boundary="b0"')[0] == PICTURE


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (form(("image", "a", b"x"), ("image", "a", b"y")), "'image' more than once"),
        (form(("image", "a", b"x"), ("masks", None, b"1"), ("masks", None, b"2")), "'masks' more"),
        (form(("image", None, b"x")), "'image' is text"),
        (form(("masks", "a", b"x")), "'masks' is a file"),
        (form(("masks", None, b"1")), "no file 'image'"),
        (form(("image", "a", b"x"), ("masks", None, b"\xff")), "not UTF-8"),
        (form(("image", "a", b"x"))[:-6], "ends before its last boundary"),
        (form(("image", "a", b"x"), ("targets", None, b"x" * (MOST_FIELD_BYTES + 1))), "65536"),
        (form(*((f"f{i}", None, b"") for i in range(30))), "more than 21 parts"),
        (form((f'a"; x="{"y" * 5000}', None, b"")), "header bytes|cannot be parsed"),
        (b"--b0\r\n\r\nx\r\n--b0--\r\n", "no name"),
        (b"--y\r\n", "cannot be parsed"),
        (b"", "ends before|cannot be parsed"),
    ],
)
def test_a_bad_form_is_told(body: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_form(body, KIND)


def test_a_form_without_a_boundary_is_told() -> None:
    with pytest.raises(InputError, match="no boundary"):
        read_form(b"", "multipart/form-data")
    with pytest.raises(InputError, match="cannot be parsed"):
        read_form(b"", "multipart/form-data; boundary=" + "b" * 5000)


@pytest.fixture(scope="module")
def explainer(bundle: str) -> Any:
    with vitcx.load(bundle, "onnxruntime", 1, 8) as explainer:
        yield explainer


def asked(explainer: Any, body: bytes) -> Any:
    return read_asked(body, JSON, explainer, Limits())


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ('"settings":{"noise_std":1' + "0" * 400 + "}", "more than 64 bits"),
        ('"settings":{"noise_std":1e400}', "'settings' does not fit"),
        ('"settings":{"noise_std":NaN}', "not JSON"),
        ('"targets":[1' + "0" * 400 + "]", "more than 64 bits"),
        ('"targets":' + "[" * 100_000, "not JSON"),
        ('"targets":' + "[" * 100_000 + "]" * 100_000, "not JSON"),
        ('"targets":' + "[" * 500 + "]" * 500, "'targets'"),
        ('"targets":"' + "x" * 70_000 + '"', "at most 65536"),
        ('"targets":"\\ud800"', "not JSON"),
        ('"settings":{"\\ud800":1}', "not JSON"),
        ('"\\ud800":1', "not JSON"),
        ('"targets":"\udcff"', "not JSON"),
        ('"more":1', "unknown field `more`"),
        ('"masks":1,"masks":1', "the body has the key 'masks' twice: give it once"),
        ('"masks":1,"m\\u0061sks":2', "the body has the key 'masks' twice"),
        ('"settings":{"seed":1,"seed":2}', "'settings' has the key 'seed' twice"),
    ],
)
def test_json_that_cannot_be_used_is_told(explainer: Any, rest: str, says: str) -> None:
    body = f'{{"image":"{TEXT}",{rest}}}'.encode(errors="surrogateescape")
    with pytest.raises(InputError, match=says):
        asked(explainer, body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"image":"x","targets":[' + b",".join([b"[]"] * 2_000_000) + b"]}",
        b'{"image":"x","settings":{' + b",".join(b'"%x":0' % i for i in range(500_000)) + b"}}",
        b'{"image":"x",' + b",".join(b'"%x":0' % i for i in range(500_000)) + b"}",
    ],
    ids=["empty lists", "settings", "keys"],
)
def test_a_large_json_makes_no_objects_of_what_nobody_wants(explainer: Any, body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            asked(explainer, body)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body)
    finally:
        tracemalloc.stop()


def call(shape: list[int], data: Any, targets: Any = None, kind: str = "INT64", **more: Any) -> Any:
    inputs = [{"name": "images", "datatype": "FP32", "shape": shape, "data": data}]
    if targets is not None:
        size = [len(targets)]
        inputs.append({"name": "targets", "datatype": kind, "shape": size, "data": targets})
    return open_inference.decode(json.dumps({"inputs": inputs, **more}).encode(), None)


def test_numbers_of_a_tensor_may_be_flat_or_nested() -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 100, 90)).astype(np.float32)
    flat = call(list(values.shape), values.ravel().tolist()).images
    nested = call(list(values.shape), values.tolist()).images
    np.testing.assert_array_equal(flat, values)
    np.testing.assert_array_equal(nested, values)


@pytest.mark.parametrize(
    "data",
    [
        [0] * 11,
        [0] * 13,
        [[0] * 6, [0] * 6],
        [0] * 11 + ["1"],
        [0] * 11 + [True],
        [0] * 11 + [None],
        [0] * 11 + [[0]],
        [[]] * 12,
        {"a": 1},
        "0,0,0,0,0,0,0,0,0,0,0,0",
    ],
)
def test_data_that_do_not_fill_their_shape_are_refused(data: Any) -> None:
    with pytest.raises(InputError, match=r"do not fill their shape \[1, 3, 2, 2\]"):
        call([1, 3, 2, 2], data)


@pytest.mark.parametrize(
    "shape", [[0, 2**62, 2**62, 4], [2**62] * 4, [1] * 100_000, [], [1, -3], [1.0], "x", [1] * 9]
)
def test_shapes_that_no_tensor_has_are_refused(shape: Any) -> None:
    with pytest.raises(InputError, match="the shape of 'images'"):
        call(shape, [0])


def test_numbers_beyond_their_type_are_refused() -> None:
    with pytest.raises(InputError, match="NaN or beyond a float32"):
        call([1, 3, 1, 1], [1e39, 0, 0])
    with pytest.raises(InputError, match="no double holds"):
        call([1, 3, 1, 1], [10**400, 0, 0])
    with pytest.raises(InputError, match="do not fit INT32"):
        call([1, 3, 1, 1], [0] * 3, targets=[4294967297], kind="INT32")
    with pytest.raises(InputError, match="do not fit INT64"):
        call([1, 3, 1, 1], [0] * 3, targets=[1 << 63])
    assert call([1, 3, 1, 1], [0] * 3, targets=[-1, 2], kind="INT32").targets == [-1, 2]


@pytest.mark.parametrize("data", [[1.7], [1.0], [True], ["1"], [[1]], 1])
def test_targets_that_are_no_whole_numbers_are_refused(data: Any) -> None:
    pixels = {"name": "images", "datatype": "FP32", "shape": [1, 3, 1, 1], "data": [0, 0, 0]}
    classes = {"name": "targets", "datatype": "INT64", "shape": [1], "data": data}
    with pytest.raises(InputError, match="'targets' are not whole numbers"):
        open_inference.decode(json.dumps({"inputs": [pixels, classes]}).encode(), None)


def test_more_tensors_than_two_end_the_parsing() -> None:
    tensor = b'{"name":"a","datatype":"FP32","shape":[1],"data":[1]}'
    with pytest.raises(InputError, match="does not fit"):
        open_inference.decode(b'{"inputs":[' + b",".join([tensor] * 100_000) + b"]}", None)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('{"inputs"', '{"inputs":[],"inputs"', "the request has the key 'inputs' twice"),
        ('"shape"', '"shape":[1],"shape"', "an input has the key 'shape' twice"),
        ('"id"', '"parameters":{"seed":1,"seed":2},"id"', "the request has the key 'seed' twice"),
        ('"id"', "".join(f'"x{i}":0,' for i in range(70)) + '"id"', "more than 64 keys"),
    ],
)
def test_a_key_stands_once_in_a_request_for_tensors(old: str, new: str, says: str) -> None:
    inputs = [{"name": "images", "datatype": "FP32", "shape": [1, 3, 1, 1], "data": [0, 0, 0]}]
    body = json.dumps({"inputs": inputs, "id": "a"})
    assert open_inference.decode(body.encode(), None).id == "a"
    with pytest.raises(InputError, match=says):
        open_inference.decode(body.replace(old, new).encode(), None)


def test_an_output_is_given_once() -> None:
    """One request of 30,000 times the same output filled 5 GB."""
    with pytest.raises(InputError, match="'saliency' is asked for twice"):
        call([1, 3, 1, 1], [0] * 3, outputs=[{"name": "saliency"}] * 2)
    with pytest.raises(InputError, match="at most 65536"):
        call([1, 3, 1, 1], [0] * 3, outputs=[{"name": "saliency"}] * 30_000)


def test_an_answer_of_too_many_maps_is_refused_before_it_is_made() -> None:
    assert len(call([64, 3, 1, 1], [0] * 192, targets=[0] * 4).images) == 64
    with pytest.raises(InputError, match="64 images times 5 targets: at most 256"):
        call([64, 3, 1, 1], [0] * 192, targets=[0] * 5)


def test_no_answer_is_larger_than_was_reckoned(explainer: Any) -> None:
    """As JSON, as an archive, as tensors; and not by much more than a few times smaller."""
    include = ["saliency", "heatmap", "masks", "colors"]
    for rest in (
        {"include": include, "masks": 1000, "targets": [0, 1, 2, 3]},
        {"include": include, "masks": 1000, "settings": {"method": "rise", "mask_count": 40}},
        {"include": include, "masks": 1000, "settings": {"method": "occlusion"}},
        {"targets": "top5"},
    ):
        given = asked(explainer, json.dumps({"image": TEXT, **rest}).encode())
        result = explainer.explain_requests([given.request])
        explanation = next(result)
        result.close()
        for kind in (JSON, NPZ):
            made = len(render(explanation, given, kind, Limits()))
            assert made <= answer_bytes(given, kind, explainer.manifest)
    pixels = np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    for binary in (True, False):
        wanted = call(
            list(pixels.shape),
            pixels.ravel().tolist(),
            targets=[0, 1],
            parameters={"binary_data_output": binary},
        )
        results = [explainer.explain(image, [0, 1]) for image in wanted.images]
        body, _ = open_inference.encode("tiny", wanted, results)
        expected = open_inference.answer_bytes(wanted, explainer.manifest) + 1000
        assert expected / 4 < len(body) <= expected


def test_an_answer_beyond_the_limit_is_refused(explainer: Any) -> None:
    many = {"image": TEXT, "include": ["saliency"], "targets": list(range(5)) * 20}
    given = asked(explainer, json.dumps(many).encode())
    with pytest.raises(InputError, match="the answer would have up to"):
        check_answer(answer_bytes(given, JSON, explainer.manifest), Limits(answer_bytes=100_000))
    with pytest.raises(InputError, match="the answer would have up to"):
        render(explainer.explain(png_array()), given, "image/png", Limits(answer_bytes=1000))


def test_an_overlay_past_the_deadline_is_not_drawn(explainer: Any) -> None:
    given = asked(explainer, json.dumps({"image": TEXT}).encode())
    with pytest.raises(Refused, match="not done within 60 s"):
        render(explainer.explain(png_array()), given, "image/png", Limits(), deadline=0.0)


def png_array() -> Any:
    return np.zeros((40, 36, 3), np.uint8)


def test_no_piece_of_parsing_holds_the_interpreter_for_long() -> None:
    """Numbers are read in pieces, so that the event loop has its turns between them."""
    text = b"[" + b",".join([b"0.125"] * 300_000) + b"]"
    pieces: list[int] = []
    decode = msgspec.json.decode

    def watched(data: bytes, **more: Any) -> Any:
        pieces.append(len(data))
        return decode(data, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(msgspec.json, "decode", watched)
        values = json_text.numbers(text, [300_000], "the data")
    assert (values == 0.125).all()
    assert len(pieces) > 5
    assert max(pieces) < 300_000


def test_a_form_made_of_boundaries_that_almost_fit_ends() -> None:
    with pytest.raises(InputError):
        read_form(b"--b0\r\n" + b"\r\n--b" * 400_000, KIND)
