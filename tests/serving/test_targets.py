"""What a target means to the server: the rule of `vitcx.runtime.targets`, and its limit."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.serving.running import png
from vitcx.runtime.errors import InputError
from vitcx.serving.limits import Limits
from vitcx.serving.reading import check_targets, read_asked

PICTURE = png()


def in_a_form(text: str) -> Any:
    """The targets of a form whose field is `text`."""
    body = b""
    for name, content in (("image", PICTURE), ("targets", text.encode())):
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"'
        head += '; filename="a.png"' if name == "image" else ""
        body += head.encode() + b"\r\n\r\n" + content + b"\r\n"
    return asked(body + b"--b--\r\n", "multipart/form-data; boundary=b")


def in_json(value: Any) -> Any:
    image = base64.b64encode(PICTURE).decode()
    return asked(json.dumps({"image": image, "targets": value}).encode(), "application/json")


def asked(body: bytes, kind: str) -> Any:
    return read_asked(body, kind, _Explainer(), Limits()).request


class _Explainer:
    """Hands back the targets that it is given."""

    manifest = None

    def request(self, picture: Any, targets: Any, **settings: Any) -> Any:
        return targets


@pytest.fixture(autouse=True)
def _no_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_request(
        explainer: Any, picture: Any, targets: Any, settings: Any, limits: Any, *, preset: Any
    ) -> Any:
        return explainer.request(picture, targets, **settings)

    monkeypatch.setattr("vitcx.serving.reading.make_request", make_request)


@pytest.mark.parametrize(
    ("text", "targets"),
    [("3", "3"), ("3.0", "3.0"), ("top5", "top5"), ('["fox", 3]', ["fox", 3]), ('"3"', "3")],
)
def test_a_number_in_a_form_is_a_word(text: str, targets: Any) -> None:
    assert in_a_form(text) == targets


@pytest.mark.parametrize("value", [3, "3", ["3", 3], None])
def test_json_tells_numbers_from_words(value: Any) -> None:
    assert in_json(value) == value


@pytest.mark.parametrize("targets", ["top101", "TOP101", " top999999 ", ["top60", "top60"]])
def test_the_limit_counts_what_words_stand_for(targets: Any) -> None:
    with pytest.raises(InputError, match="asks for more than 100 classes"):
        check_targets(targets, 100)


def test_the_page_asks_by_index() -> None:
    page = Path(__file__).resolve().parents[2] / "src" / "vitcx" / "serving" / "page" / "answers.js"
    assert "`index:${target}`" in page.read_text(encoding="utf-8")
