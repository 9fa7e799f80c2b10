"""The most memory a contender takes, alone in a process of its own.

``measure`` starts ``python -m benchmarks.footprint``, which reads the contender from standard
input, explains one picture twice and prints its peak.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import Contender, FloatArray, Workshop
from vitcx.evaluation.speed import peak_memory


def measure(workshop: Workshop, contender: Contender, image: FloatArray, target: int) -> int:
    """Bytes of resident memory at the peak, the interpreter and its libraries included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.npy"
        np.save(path, image)
        order = {
            "workshop": {
                "model": workshop.model,
                "checkpoint": workshop.checkpoint,
                "authors_code": workshop.authors_code,
                "threads": workshop.threads,
            },
            "contender": asdict(contender),
            "image": str(path),
            "target": target,
        }
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.footprint"],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{contender.kind} failed in its own process:\n{done.stderr}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def main() -> None:
    warnings.simplefilter("ignore")
    order: dict[str, Any] = json.load(sys.stdin)
    with Workshop(**order["workshop"]) as workshop:
        call = workshop.build(Contender(**order["contender"]))
        image = np.load(order["image"])
        for _ in range(2):
            call(image, order["target"])
        print(json.dumps({"peak_bytes": peak_memory()}))


if __name__ == "__main__":
    main()
