"""Damaged bundles, opened in processes that may die."""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bad_input import CHEAP, mutated_bundle

BUNDLE_SECONDS = 60.0
_EXAMPLES = 5


def open_bundles(first: int, count: int, bundle: str, folder: str, results: Any) -> None:
    """In a process of its own: open mutated bundles and explain with each; tell what happened."""
    import vitcx
    from vitcx.runtime.errors import VitcxError

    demo = Path(vitcx.__file__).parent / "runtime" / "demo" / "bundle"
    source = demo if bundle == "demo" else Path(bundle)
    good = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    picture = np.zeros((32, 32, 3), np.uint8)
    for seed in range(first, count):
        results.put((seed, "begun", ""))
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            mutated_bundle(random.Random(seed), good, Path(scratch))
            try:
                with vitcx.load(scratch, "onnxruntime", 1, 8) as explainer:
                    explainer.explain(picture, **CHEAP)
                outcome, said = "explained", ""
            except VitcxError as error:
                said = str(error)
                outcome = "refused" if "\n" not in said else "refused in several lines"
            except Exception as error:
                outcome, said = "raised", f"{type(error).__name__}: {error}"[:200]
        results.put((seed, outcome, said))
    results.put((count, "done", ""))


def bundles(count: int, bundle: str, seconds: float) -> dict[str, Any]:
    """Open `count` mutated bundles in processes that may die and are then started again."""
    end = time.monotonic() + seconds
    outcomes: Counter[str] = Counter()
    examples: list[str] = []
    context = multiprocessing.get_context("spawn")
    first = 0
    with tempfile.TemporaryDirectory() as folder:
        while first < count and time.monotonic() < end:
            results = context.Queue()
            arguments = (first, count, bundle, folder, results)
            worker = context.Process(target=open_bundles, args=arguments, daemon=True)
            worker.start()
            seed, outcome, said = first, "begun", ""
            while outcome != "done" and time.monotonic() < end:
                try:
                    seed, outcome, said = results.get(timeout=BUNDLE_SECONDS)
                except Exception:  # it hangs, or has died without a word
                    outcome = "hang" if worker.is_alive() else "crash"
                if outcome not in ("begun", "done"):
                    outcomes[outcome] += 1
                    first = seed + 1
                    if outcome not in ("explained", "refused") and len(examples) < _EXAMPLES:
                        examples.append(f"seed {seed}: {outcome} {said}")
                if outcome in ("hang", "crash"):
                    break
            if outcome == "done":
                first = count
            worker.kill()
            worker.join()
    return {
        "wanted": count,
        "opened": sum(outcomes.values()),
        "outcomes": dict(sorted(outcomes.items())),
        "failures": sum(n for name, n in outcomes.items() if name not in ("explained", "refused")),
        "examples": examples,
    }
