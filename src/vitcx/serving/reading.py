"""A request to explain, from an upload or from JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import Awaitable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from fastapi import Request as HttpRequest
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.method.methods import mask_bytes
from vitcx.runtime.pictures.reading import EncodedPicture
from vitcx.runtime.settings import Request, Settings
from vitcx.serving.desk import Limits, Refused
from vitcx.serving.guard import BodyTooLarge

# RISE's own 4,000 masks take 12 MB; occlusion by single pixels would take gigabytes, and minutes of
# a thread that nothing can stop.
MOST_MASK_BYTES = 256 << 20
SETTING_NAMES = frozenset(field.name for field in fields(Settings))
INCLUDES = ("saliency", "heatmap", "masks", "colors")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Asked:
    """What a client wants: the request for the explainer, and how to answer."""

    request: Request
    include: frozenset[str]
    masks: int
    strength: float


async def before(deadline: float, reading: Awaitable[_T]) -> _T:
    """Wait for a body, but not past the deadline: a slow sender must not hold a place for ever."""
    try:
        return await asyncio.wait_for(reading, max(0.001, deadline - time.monotonic()))
    except asyncio.TimeoutError:
        raise Refused(408, "the request did not arrive in time") from None


async def read_asked(
    http: HttpRequest, explainer: Explainer, limits: Limits, deadline: float
) -> Asked:
    """Read and check the body.

    Raises
    ------
    Refused, InputError
        415 or 408, or what is wrong with the content.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        fields_given = _json_object(await before(deadline, http.body()), "the body")
        image = fields_given.pop("image", None)
        if not isinstance(image, str):
            raise InputError("'image' is missing: give the picture file as base64 text")
        try:
            data = base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            raise InputError("'image' is not base64") from None
    elif kind == "multipart/form-data":
        data, fields_given = await before(deadline, _read_form(http))
    elif kind.startswith("image/") or kind == "application/octet-stream":
        data, fields_given = await before(deadline, http.body()), {}
    else:
        raise Refused(
            415, "send multipart/form-data with a file 'image', application/json, or a picture"
        )
    if not data:
        raise InputError("the picture is empty")
    picture = EncodedPicture("image", lambda: data, limits.pixels)
    return _asked(picture, fields_given, explainer, limits)


async def _read_form(http: HttpRequest) -> tuple[bytes, dict[str, Any]]:
    try:
        form = await http.form(max_files=1, max_fields=20)
    except (BodyTooLarge, ClientDisconnect):
        raise
    except Exception:  # the parser's own errors and Starlette's have no common base
        raise InputError("the form cannot be parsed: send a file 'image' and text fields") from None
    async with http.form() as form:
        upload = form.get("image")
        if not isinstance(upload, UploadFile):
            raise InputError("the form has no file 'image'")
        given: dict[str, Any] = {}
        for name, value in form.items():
            if name != "image":
                if not isinstance(value, str):
                    raise InputError(f"'{name[:50]}' is a file: give text")
                given[name] = _loosely(name, value)
        return await upload.read(), given


def _loosely(name: str, value: str) -> Any:
    """Text of a form field: JSON where it is JSON, else the text itself (class names, top5)."""
    if name == "settings":
        return _json_object(value.encode(), "'settings'")
    try:
        return json.loads(value)
    except ValueError:
        return value


def _json_object(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise InputError(f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise InputError(f"{what} is a JSON {type(value).__name__}: give an object")
    return value


def _asked(
    picture: EncodedPicture, given: dict[str, Any], explainer: Explainer, limits: Limits
) -> Asked:
    settings = given.pop("settings", None) or {}
    if not isinstance(settings, dict):
        raise InputError("'settings' is not an object")
    targets = given.pop("targets", None)
    include = given.pop("include", None) or []
    if isinstance(include, str):
        include = include.split(",")
    if not isinstance(include, list) or any(name not in INCLUDES for name in include):
        raise InputError(f"'include' lists what is wanted of {', '.join(INCLUDES)}")
    masks, strength = given.pop("masks", 8), given.pop("strength", 0.8)
    if type(masks) is not int or not 0 <= masks <= 1000:
        raise InputError("'masks' is a whole number from 0 to 1000: how many of the strongest")
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise InputError("'strength' is a number from 0 to 1")
    if not 0 <= strength <= 1:
        raise InputError("'strength' is a number from 0 to 1")
    if given:
        names = ", ".join(sorted(str(name)[:50] for name in given))
        raise InputError(f"there is no field called {names}")
    request = make_request(explainer, picture, check_targets(targets, limits.targets), settings)
    return Asked(request, frozenset(include), masks, float(strength))


def make_request(
    explainer: Explainer, picture: Any, targets: Any, settings: dict[str, Any]
) -> Request:
    """The explainer's request, if its settings are known and do not ask for too much.

    Raises
    ------
    InputError
        If they do not.
    """
    if unknown := sorted(str(name)[:50] for name in settings.keys() - SETTING_NAMES):
        raise InputError(f"there is no setting called {', '.join(unknown)}")
    request = explainer.request(picture, targets, **settings)
    if mask_bytes(request.settings, explainer.manifest.input_size) > MOST_MASK_BYTES:
        raise InputError(
            f"the masks would take more than {MOST_MASK_BYTES >> 20} MiB: ask for fewer, by "
            "'mask_count' or a larger 'step'"
        )
    return request


def check_targets(targets: Any, most: int) -> Any:
    """Targets of a shape that the explainer takes, and not too many."""
    if isinstance(targets, str) and len(targets) <= 200:
        top = targets.removeprefix("top")
        if top != targets and top.isdecimal() and (len(top) > 6 or int(top) > most):
            raise InputError(f"'targets' asks for more than {most} classes")
        return targets
    if targets is None:
        return None
    if isinstance(targets, list):
        if len(targets) > most:
            raise InputError(f"'targets' lists more than {most} classes")
        if all(type(t) is int or (isinstance(t, str) and len(t) <= 200) for t in targets):
            return targets
    elif type(targets) is int:
        return targets
    raise InputError("'targets' is a class index, a name, a list of these, 'top5', or null")
