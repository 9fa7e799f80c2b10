"""Plans built ahead of time, on any machine, for another one's GPU.

A plan is executable code, so none is run because it lies somewhere. It travels as two files, the
plan and a note of what it is of, which holds the plan's digest. Whoever built it is told the digest
of the note; whoever takes it into their cache gives that digest, and so says whom they trust.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcx.kernels.files import replacing
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.tensorrt.build_options import BuildOptions
from vitcx.runtime.engines.tensorrt.builder import build_plan
from vitcx.runtime.engines.tensorrt.library import FLAVOURS, find_library
from vitcx.runtime.engines.tensorrt.plan import PlanOrder, plan_key
from vitcx.runtime.engines.tensorrt.plan_cache import PlanKey, keep
from vitcx.runtime.engines.tensorrt.plan_report import PlanReport
from vitcx.runtime.engines.tensorrt.profiles import Shapes
from vitcx.runtime.engines.tensorrt.progress import Progress
from vitcx.runtime.errors import EngineError, InputError

NOTE_SUFFIX = ".json"
# Raised with what makes a plan, as the cache's is: an older plan is not taken for a new one.
_NOTE_SCHEMA = 4


@dataclass(frozen=True)
class AheadPlan:
    """A plan on disk: its file, SHA-256 of its note in hexadecimal, and the build's report."""

    path: Path
    digest: str
    report: PlanReport


def note_path(plan: Path) -> Path:
    """Of the note beside a plan."""
    return plan.with_name(plan.name + NOTE_SUFFIX)


def build_ahead(
    bundle: Bundle,
    out: Path,
    flavour: str,
    shapes: Shapes,
    options: BuildOptions,
    report: Progress | None = None,
) -> AheadPlan:
    """Build a plan for `options.compute_capabilities`, and write it to `out` with its note.

    Raises
    ------
    InputError
        No compute capability is given.
    BundleError, EngineError, MissingExtraError
        As `find_library` and `build_plan` do. Nothing is written then.
    """
    if not options.compute_capabilities:
        raise InputError(
            "give the compute capabilities of the GPUs that are to run it, such as 8.9"
        )
    library = find_library(flavour)
    built = build_plan(library, bundle, shapes, options, report)
    keys = [
        plan_key(PlanOrder(library, bundle, shapes, options, "", capability))
        for capability in options.compute_capabilities
    ]
    note = {
        "schema_version": _NOTE_SCHEMA,
        "model_name": bundle.manifest.model_name,
        "sha256": hashlib.sha256(built.plan).hexdigest(),
        "keys": [dataclasses.asdict(key) for key in keys],
        "report": dataclasses.asdict(built.report),
    }
    text = (json.dumps(note, indent=2, ensure_ascii=False) + "\n").encode()
    with replacing(out) as temporary:
        temporary.write_bytes(built.plan)
    with replacing(note_path(out)) as temporary:
        temporary.write_bytes(text)
    return AheadPlan(out, hashlib.sha256(text).hexdigest(), built.report)


def take_plan(
    plan: Path, bundle: Bundle, digest: str, directory: Path | None = None
) -> tuple[PlanKey, ...]:
    """Check a plan that was built ahead, and put it into the user's cache.

    Parameters
    ----------
    plan : the file; its note lies beside it.
    bundle : that it must be of.
    digest : SHA-256 of the note, as the build told it.
    directory : of the cache; None takes the user's.

    Returns
    -------
    tuple of PlanKey
        What it will be used for: one for each compute capability.

    Raises
    ------
    InputError
        A file is missing, or is not the one that the digest is of; or the plan is of another
        bundle.
    EngineError
        The library that is installed here is not the one that built it.
    OSError
        The cache cannot be used: the log says why.
    """
    try:
        text, content = note_path(plan).read_bytes(), plan.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"no '{error.filename}': a plan is FILE and its note FILE{NOTE_SUFFIX}"
        ) from None
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise InputError(f"the SHA-256 is {digest!r}: give the 64 digits that the build printed")
    if hashlib.sha256(text).hexdigest() != digest:
        raise InputError(
            f"'{note_path(plan)}' is not the note that the SHA-256 is of: the plan is another one, "
            "or was changed; it is not taken"
        )
    note = _read_note(text)
    if hashlib.sha256(content).hexdigest() != note["sha256"]:
        raise InputError(f"'{plan}' is not the plan of its note: it is damaged; it is not taken")
    keys = tuple(PlanKey(**values) for values in note["keys"])
    for key in keys:
        _check_key(key, plan, bundle)
        if not keep(key, content, directory):
            raise OSError("the plan is not taken: the cache of plans cannot be used")
    return keys


def _read_note(text: bytes) -> Mapping[str, Any]:
    """The note, which is as it was written: its digest has been checked."""
    note: Mapping[str, Any] = json.loads(text)
    if note["schema_version"] != _NOTE_SCHEMA:
        raise InputError(
            f"the plan's note has schema version {note['schema_version']!r} and this vitcx reads "
            f"{_NOTE_SCHEMA}: build the plan with this vitcx"
        )
    return note


def _check_key(key: PlanKey, plan: Path, bundle: Bundle) -> None:
    if dict(key.files) != dict(bundle.manifest.files):
        raise InputError(f"'{plan}' is not of the bundle '{bundle.path}': build it from that one")
    if key.flavour not in FLAVOURS:
        raise InputError(f"'{plan}' is of {key.flavour!r}, not of {' or '.join(FLAVOURS)}")
    library = find_library(key.flavour)
    if key.version != library.version:
        raise EngineError(
            f"'{plan}' was built by {key.flavour} {key.version}, and {library.version} is "
            "installed here: a plan runs only on the version that built it"
        )
