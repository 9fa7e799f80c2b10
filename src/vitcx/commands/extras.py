"""The extras of vitcx, and what each lacks here. Read from the installed package itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_FOR_DEVELOPERS = ("dev", "docs")
# Packages that install the same module as another.
_STAND_INS = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
}


@dataclass(frozen=True)
class Extra:
    """An extra of vitcx.

    Attributes
    ----------
    name : as `pip install 'vitcx[NAME]'` takes it.
    missing : packages of it that are not installed, whatever their version.
    """

    name: str
    missing: tuple[str, ...]


def read_extras() -> list[Extra]:
    """Every extra for users. None where vitcx runs from its sources and was never installed."""
    try:
        about = metadata.metadata("vitcx")
    except metadata.PackageNotFoundError:
        return []
    packages = extra_packages(about.get_all("Requires-Dist") or [])
    return [
        Extra(name, tuple(p for p in sorted(packages.get(name, ())) if not _is_installed(p)))
        for name in about.get_all("Provides-Extra") or []
        if name not in _FOR_DEVELOPERS
    ]


def extra_packages(requirements: list[str]) -> dict[str, set[str]]:
    """Package names by extra, of the lines of ``Requires-Dist``; extras of extras resolved."""
    own: dict[str, set[str]] = {}
    nested: dict[str, set[str]] = {}
    for line in requirements:
        needed, extra = _REQUIREMENT.match(line), _EXTRA.search(line)
        if needed is None or extra is None:
            continue
        if needed[1] == "vitcx":
            inner = (word.strip() for word in (needed[2] or "").split(","))
            nested.setdefault(extra[1], set()).update(inner)
        else:
            own.setdefault(extra[1], set()).add(needed[1])

    def gather(extra: str, seen: frozenset[str]) -> set[str]:
        found = set(own.get(extra, ()))
        for inner in nested.get(extra, set()) - seen:
            found |= gather(inner, seen | {inner})
        return found

    return {extra: gather(extra, frozenset({extra})) for extra in own.keys() | nested.keys()}


def _is_installed(package: str) -> bool:
    for name in (package, *_STAND_INS.get(package, ())):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return True
    return False
