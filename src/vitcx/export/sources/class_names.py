"""The names of a model's classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from vitcx.export.graph.heads import Head
from vitcx.export.timm_import import import_timm
from vitcx.runtime.errors import InputError


def resolve_class_names(
    names: Sequence[str] | None, known: Sequence[str] | None, head: Head, count: int
) -> tuple[str, ...]:
    """`names` if given, those that are `known` if they fit, else the head's own: "class 0", ...

    Raises
    ------
    InputError
        If `names` are not `count`.
    """
    if names is not None:
        if len(names) != count:
            raise InputError(f"{len(names)} class names for {count} {_plural(head.target_kind)}")
        return tuple(names)
    if known is not None and len(known) == count and head.name != "none":
        return tuple(known)
    return head.default_names


def _plural(kind: str) -> str:
    return {"class": "classes", "similarity": "similarities"}.get(kind, f"{kind}s")


def label_set_names(model: nn.Module) -> tuple[str, ...] | None:
    """Names in a timm model's configuration, or of the ImageNet label set that it implies.

    None if the model has another number of classes than its configuration, or timm knows no names.
    """
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    count = getattr(model, "num_classes", None)
    if not count or config.get("num_classes") != count:
        return None
    names = _names_of(config)
    return names if names is not None and len(names) == count else None


def _names_of(config: dict[str, Any]) -> tuple[str, ...] | None:
    stated = config.get("label_names")
    if stated:
        described = config.get("label_descriptions") or {}
        return tuple(str(described.get(label, label)) for label in stated)
    data = import_timm().data
    subset = data.infer_imagenet_subset(config)
    if subset is None:
        return None
    info = data.ImageNetInfo(subset)
    synonyms = [info.index_to_description(index) for index in range(info.num_classes())]
    details = [
        info.index_to_description(index, detailed=True).partition(": ")[2].partition(";")[0]
        for index in range(info.num_classes())
    ]
    return shortest_distinct(synonyms, details)


def shortest_distinct(synonyms: Sequence[str], details: Sequence[str]) -> tuple[str, ...]:
    """The first of each class's comma-separated synonyms, with more where two classes share it.

    A shared first name becomes all the synonyms, and if these are shared too, the detail follows in
    brackets: WordNet has two birds and machines called "crane".
    """
    first = [names.partition(",")[0] for names in synonyms]
    shared = Counter(first)
    names = [f if shared[f] == 1 else s for f, s in zip(first, synonyms, strict=True)]
    still = Counter(names)
    return tuple(n if still[n] == 1 else f"{n} ({d})" for n, d in zip(names, details, strict=True))
