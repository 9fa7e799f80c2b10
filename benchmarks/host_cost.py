"""What an explanation costs outside the engine: each of the host's steps, on a picture's embedding.

    python benchmarks/host_cost.py BUNDLE PICTURE [--masks 70] [--rounds 31]

On a CPU this is next to nothing of an explanation. On a GPU, whose forward passes take
milliseconds, it is what one explanation at a time waits for. The engine here is ONNX Runtime's CPU,
which makes the embedding and is not timed. The last line is JSON: median and quartiles in
milliseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles

import numpy as np

# Started as a script, Python looks for modules beside this file.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu.mask_counts import threshold_for
from vitcx.evaluation.speed import describe_run
from vitcx.runtime.errors import VitcxError
from vitcx.runtime.explainer import load
from vitcx.runtime.method.aggregation import aggregate
from vitcx.runtime.method.clustering import cluster
from vitcx.runtime.method.masks import cosine_distances, merge_masks, vit_masks
from vitcx.runtime.pictures.preprocess import prepare


def measure(bundle: str, picture: str, masks: int, rounds: int) -> dict[str, object]:
    """The steps in turns, so that a slow moment of the machine falls on all of them."""
    with load(bundle, "onnxruntime", allow_imprecise=True) as explainer:
        manifest = explainer.manifest
        prepared = prepare(picture, manifest)
        _, (embedding,) = explainer.session.encode(prepared.pixels[None])
    size = manifest.input_size
    threshold, count = threshold_for(embedding, size, masks)
    low = vit_masks(embedding, size)
    distances = cosine_distances(low, size)
    labels = cluster(distances, threshold)
    merged = merge_masks(low, labels, size, "mean")
    impacts = np.random.default_rng(0).normal(size=(1, count)).astype(np.float32)
    steps: dict[str, Callable[[], object]] = {
        "read and crop": lambda: prepare(picture, manifest),
        "masks": lambda: vit_masks(embedding, size),
        "distances": lambda: cosine_distances(low, size),
        "clustering": lambda: cluster(distances, threshold),
        "merging": lambda: merge_masks(low, labels, size, "mean"),
        "aggregation": lambda: aggregate(merged, impacts, size, correct_coverage=True),
    }
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn > 0:  # the first one warms up
                samples[name].append(1000 * (time.perf_counter() - start))
    found = {name: [round(q, 2) for q in quantiles(times)] for name, times in samples.items()}
    return {
        **describe_run(["numpy", "scipy"]),
        "model": manifest.model_name,
        "channels": len(embedding),
        "masks": count,
        "rounds": rounds,
        "milliseconds": {name: {"median": q[1], "quartiles": q[::2]} for name, q in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("picture")
    parser.add_argument("--masks", type=int, default=70)
    parser.add_argument("--rounds", type=int, default=31)
    given = parser.parse_args()
    try:
        print(json.dumps(measure(given.bundle, given.picture, given.masks, given.rounds)))
    except VitcxError as error:
        raise SystemExit(f"host_cost: {error}") from None


if __name__ == "__main__":
    main()
