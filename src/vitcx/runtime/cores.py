"""How many cores of the processor this process has."""

from __future__ import annotations

import os
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")


def available_cores() -> int:
    """Physical cores that this process may run on; logical ones where the system does not tell."""
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is None:  # Windows and macOS
        return os.cpu_count() or 1
    allowed = affinity(0)
    siblings = set()
    for cpu in allowed:
        try:
            siblings.add((_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            return len(allowed)
    return len(siblings)
