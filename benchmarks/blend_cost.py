"""The NumPy blend's time as a share of the forward pass it feeds, measured in turns.

    python benchmarks/blend_cost.py BUNDLE [--rounds 9]

Each round times one batch: blended with noise made for it (cold), blended with kept noise (warm),
and scored by ONNX Runtime. The machine's speed swings, so shares are taken within a round; the
process's CPU time stands beside the wall time, because other programs' load does not enter it. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import quantiles

import numpy as np

from vitcx.kernels.host.blend import MASKED, NOISY, Perturbation, blend
from vitcx.kernels.host.noise import NoiseCache


def measure(bundle: str, rounds: int) -> dict[str, object]:
    """Medians and quartiles of the shares, in per cent, and every sample in milliseconds."""
    import onnxruntime

    from vitcx.runtime.bundle import read_bundle

    read = read_bundle(bundle)
    height, width = read.manifest.input_size
    options = onnxruntime.SessionOptions()
    # Threads that spin after a run would be charged to the blend that follows it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        str(read.model_path), options, providers=["CPUExecutionProvider"]
    )
    rows = 16
    rng = np.random.default_rng(0)
    image = rng.normal(size=(3, height, width)).astype(np.float32)
    masks = rng.random((rows // 2, *read.manifest.grid), dtype=np.float32)
    batch = np.zeros((rows, 3, height, width), np.float32)
    noise = NoiseCache()
    samples: dict[str, dict[str, list[float]]] = {
        clock: {"cold": [], "warm": [], "forward": []} for clock in ("wall", "cpu")
    }
    for number in range(rounds + 1):
        perturbations = [
            Perturbation(
                0,
                k,
                k,
                number,
                0.1,
                (
                    (MASKED, 2 * k),
                    (NOISY, 2 * k + 1),
                ),
            )
            for k in range(rows // 2)
        ]
        steps = (
            (
                "cold",
                lambda perturbations=perturbations: blend(
                    [image], masks, perturbations, batch, noise
                ),
            ),
            (
                "warm",
                lambda perturbations=perturbations: blend(
                    [image], masks, perturbations, batch, noise
                ),
            ),
            ("forward", lambda: session.run(["probabilities"], {"images": batch})),
        )
        for name, step in steps:
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if number > 0:  # the first round warms up
                samples["wall"][name].append(wall * 1000)
                samples["cpu"][name].append(cpu * 1000)
    shares = {
        f"{name}, {clock}": [
            round(q, 2)
            for q in quantiles(
                [100 * s / f for s, f in zip(of[name], of["forward"], strict=True)], n=4
            )
        ]
        for clock, of in samples.items()
        for name in ("cold", "warm")
    }
    return {
        "model": read.manifest.model_name,
        "rows": rows,
        "percent_of_forward_quartiles": shares,
        "milliseconds": {
            clock: {k: [round(x, 2) for x in v] for k, v in of.items()}
            for clock, of in samples.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", help="folder that `vitcx export` wrote")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.bundle, arguments.rounds)))


if __name__ == "__main__":
    main()
