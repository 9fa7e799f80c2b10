"""What was found so far, in a JSON file that is replaced after every step.

A step that fails is a line in it, and the next one runs: a command that is killed, or a machine
that is taken away, loses the step that was under way and no more.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Report:
    """Results by step.

    Parameters
    ----------
    path : of the file; None keeps none. Its folder is made.

    Attributes
    ----------
    found : the results so far.
    failed : steps that raised something, or whose command did not end with 0.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.found: dict[str, Any] = {}
        self.failed: list[str] = []

    def put(self, name: str, value: Any) -> None:
        """Keep a result, and write the file anew."""
        self.found[name] = value
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(self.path.name + ".part")
        unfinished.write_text(self.text(indent=1) + "\n", encoding="utf-8")
        unfinished.replace(self.path)

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """Do `work` and keep what it gives, or the line of what it raised; that it gives too."""
        print(f"{name} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            value = work()
        except Exception as error:  # whatever a library, a driver or a machine can raise
            value = {"error": line_of(error)}
        line = _failure(value)
        if line is not None:
            self.failed.append(name)
            print(f"{name}: {line}", file=sys.stderr, flush=True)
        self.found.setdefault("seconds", {})[name] = round(time.perf_counter() - start, 1)
        self.put(name, value)
        return value

    def text(self, indent: int | None = None) -> str:
        return json.dumps(self.found, indent=indent)


def _failure(value: Any) -> str | None:
    """The line of a result that tells of a failure: an error, or a command's other end than 0."""
    if not isinstance(value, dict):
        return None
    if "error" in value:
        return str(value["error"])
    if value.get("status", 0) != 0:
        last = str(value.get("tail", "")).splitlines()[-1:]
        return f"ended with {value['status']}: {''.join(last)}"
    return None


def line_of(error: BaseException) -> str:
    """An error in one line, with its kind."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def default_path(name: str) -> Path:
    """A file of this run's own, so that no earlier one is replaced."""
    return Path("out") / "gpu" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
