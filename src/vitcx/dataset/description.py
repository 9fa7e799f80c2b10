"""The description of a job, as another job finds it in a folder: anybody may have written it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitcx.runtime.errors import InputError
from vitcx.runtime.json_objects import read_json
from vitcx.runtime.plain_files import read_plain

MOST_DESCRIPTION_BYTES = 1 << 20


def read_description(path: Path) -> dict[str, Any]:
    """What the job that was begun there depends on.

    Raises
    ------
    InputError
        If the file is no such description.
    """
    try:
        found = read_json(read_plain(path, MOST_DESCRIPTION_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        said = str(error)
        what = said if said.startswith(f"'{path}'") else f"'{path}' cannot be read ({said})"
        raise InputError(f"{what}: give another --out") from None
    if not isinstance(found, dict):
        raise InputError(f"'{path}' is not the description of a job: give another --out")
    return found
