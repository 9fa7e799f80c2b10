"""A request to explain, from an upload or from JSON. Not for the event loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.manifest import Manifest
from vitcx.runtime.method.registry import METHODS
from vitcx.runtime.pictures.decoders import DECODE_SECONDS
from vitcx.runtime.pictures.reading import EncodedPicture
from vitcx.runtime.settings import SETTING_NAMES as EXPLAIN_SETTINGS
from vitcx.runtime.settings import Request, Settings
from vitcx.runtime.targets import count_targets, with_against
from vitcx.serving import json_text
from vitcx.serving.base64_text import read_base64
from vitcx.serving.forms import read_form
from vitcx.serving.limits import Limits, Refused

# RISE's own 4,000 masks take 12 MB; occlusion by single pixels would take gigabytes, and minutes of
# a thread that nothing can stop.
MOST_MASK_BYTES = 256 << 20
SETTING_NAMES = frozenset({*EXPLAIN_SETTINGS, "preset"})
INCLUDES = ("saliency", "heatmap", "masks", "colors")
FORM, JSON_BODY = "multipart/form-data", "application/json"


@dataclass(frozen=True)
class Asked:
    """What a client wants: the request for the explainer, and how to answer."""

    request: Request
    include: frozenset[str]
    masks: int
    strength: float
    against: bool = False


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    image: str
    targets: msgspec.Raw = msgspec.Raw()
    against: msgspec.Raw = msgspec.Raw()
    settings: msgspec.Raw = msgspec.Raw()
    include: msgspec.Raw = msgspec.Raw()
    masks: msgspec.Raw = msgspec.Raw()
    strength: msgspec.Raw = msgspec.Raw()


_FIELDS = tuple(name for name in _Body.__struct_fields__ if name != "image")


def check_kind(content_type: str) -> str:
    """The media type of a body.

    Raises
    ------
    Refused
        415 if no picture comes that way.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in (JSON_BODY, FORM, "application/octet-stream") or kind.startswith("image/"):
        return kind
    raise Refused(
        415, "send multipart/form-data with a file 'image', application/json, or a picture"
    )


def read_asked(
    body: bytes | bytearray,
    content_type: str,
    explainer: Explainer,
    limits: Limits,
    preset: str | None = None,
) -> Asked:
    """Read and check a body.

    Parameters
    ----------
    content_type : the header; `check_kind` has accepted it.
    preset : the server's, for a request that names none.

    Raises
    ------
    InputError
        If something is wrong with the content.
    """
    kind = check_kind(content_type)
    given: dict[str, Any] = {}
    if kind == JSON_BODY:
        read = json_text.read(body, _Body, "the body")
        data = read_base64(read.image, "'image'")
        for name in _FIELDS:
            raw = getattr(read, name)
            if not json_text.unset(raw):
                given[name] = json_text.small(raw, f"'{name}'")
        json_text.refuse_repeated_keys(body, "the body")
    elif kind == FORM:
        data, texts = read_form(body, content_type)
        given = {name: _loosely(name, text) for name, text in texts.items()}
    else:
        data = bytes(body)
    if not data:
        raise InputError("the picture is empty")
    picture = EncodedPicture("image", lambda: data, limits.pixels, DECODE_SECONDS)
    return make_asked(picture, given, explainer, limits, preset)


def _loosely(name: str, text: str) -> Any:
    """Text of a form field: JSON where it is JSON, else the text itself (class names, top5)."""
    if name == "settings":
        return json_text.small(text.encode(), "'settings'")
    try:
        value = json_text.small(text.encode(), f"'{name}'")
    except InputError:
        return text
    # A number that is written as text is a word, here as on the command line.
    return text if name in ("targets", "against") and isinstance(value, int | float) else value


def make_asked(
    picture: Any,
    given: dict[str, Any],
    explainer: Explainer,
    limits: Limits,
    preset: str | None,
) -> Asked:
    """What is asked of a picture, from the fields that came with it.

    Parameters
    ----------
    picture : what `vitcx.Explainer.explain` takes.
    given : fields by name; emptied here.
    preset : the server's, for a request that names none.

    Raises
    ------
    InputError
        If a field is unknown or cannot be used.
    """
    settings = given.pop("settings", None) or {}
    if not isinstance(settings, dict):
        raise InputError("'settings' is not an object")
    targets, against = given.pop("targets", None), given.pop("against", None)
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
    if against is not None:
        targets = with_against(targets, against)
    wanted = check_targets(targets, limits.targets)
    request = make_request(explainer, picture, wanted, settings, limits, preset=preset)
    return Asked(request, frozenset(include), masks, float(strength), against is not None)


def check_answer(expected_bytes: int, limits: Limits) -> None:
    """Refuse an answer of too many bytes, before any work is done for it.

    Raises
    ------
    InputError
        If it is.
    """
    if expected_bytes > limits.answer_bytes:
        raise InputError(
            f"the answer would have up to {expected_bytes >> 20} MiB and the limit is "
            f"{limits.answer_bytes >> 20}: ask for fewer targets or fewer outputs"
        )


def most_masks(settings: Settings, manifest: Manifest) -> int:
    """The most masks that an explanation can have."""
    count = METHODS[settings.method].mask_count(settings, manifest.input_size)
    return manifest.channels if count is None else count


def make_request(
    explainer: Explainer,
    picture: Any,
    targets: Any,
    settings: dict[str, Any],
    limits: Limits,
    *,
    preset: str | None,
) -> Request:
    """The explainer's request, if its settings are known and do not ask for too much.

    Parameters
    ----------
    settings : of the client, by name. They override those of its preset, if it names one, and of
        the server's otherwise.
    preset : the server's; None for the default settings.

    Raises
    ------
    InputError
        If they do not.
    """
    if unknown := sorted(str(name)[:50] for name in settings.keys() - SETTING_NAMES):
        raise InputError(f"there is no setting called {', '.join(unknown)}")
    if settings.get("preset") is None:
        settings = {**settings, "preset": preset}
    request = explainer.request(picture, targets, **settings)
    method = METHODS[request.settings.method]
    size = explainer.manifest.input_size
    if method.mask_bytes(request.settings, size) > MOST_MASK_BYTES:
        raise InputError(
            f"the masks would take more than {MOST_MASK_BYTES >> 20} MiB: ask for fewer, by "
            "'mask_count' or a larger 'step'"
        )
    estimator = method.estimator(request.settings)
    passes = estimator.passes(most_masks(request.settings, explainer.manifest))
    if passes > limits.passes:
        raise InputError(
            f"the explanation would take up to {passes:,} forward passes and the limit is "
            f"{limits.passes:,}: ask for fewer masks, by 'mask_count' or a larger 'step'"
        )
    return request


def check_targets(targets: Any, most: int) -> Any:
    """Targets of a shape that the explainer takes, and not too many."""
    if isinstance(targets, str) and len(targets) <= 200:
        if count_targets(targets) > most:
            raise InputError(f"'targets' asks for more than {most} classes")
        return targets
    if targets is None:
        return None
    if isinstance(targets, list):
        if len(targets) > most:
            raise InputError(f"'targets' lists more than {most} classes")
        if all(type(t) is int or (isinstance(t, str) and len(t) <= 200) for t in targets):
            if count_targets(targets) > most:
                raise InputError(f"'targets' asks for more than {most} classes")
            return targets
    elif type(targets) is int:
        return targets
    raise InputError("'targets' is a class index, a name, a list of these, 'top5', or null")
