"""Kill a dataset job at random moments, resume it, and compare the shards byte for byte.

    python benchmarks/kill_resume.py SOURCE --bundle DIR [--kills 20] [--shard-size 4]

The moments are spread over the time that the run at hand would take, from its start on; when one
ends before its moment, half of the shards are taken away, so that there is work again. Bounded in
the number of runs; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet

from vitcx.evaluation.speed import describe_run

PACKAGES = ("vitcx", "onnxruntime", "numpy", "pillow", "pyarrow")


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*.parquet"))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--shard-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        calm, rough = Path(scratch, "calm"), Path(scratch, "rough")

        def job(out: Path) -> list[str]:
            words = [sys.executable, "-m", "vitcx", "dataset", arguments.source, "--out", str(out)]
            words += ["--bundle", arguments.bundle, "--shard-size", str(arguments.shard_size)]
            return [*words, "--resume"]

        def timed() -> tuple[float, int]:
            start = time.perf_counter()
            code = subprocess.run(job(calm), stdout=subprocess.DEVNULL).returncode
            return time.perf_counter() - start, code

        whole, code = timed()
        nothing, _ = timed()  # to do: what a run takes beside its shards
        names = sorted(shards(calm))
        kills = finished = 0
        seconds: list[float] = []
        for _ in range(4 * arguments.kills):
            missing = 1 - len(shards(rough)) / len(names)
            moment = moments.uniform(0.05, 1.1) * (nothing + missing * (whole - nothing))
            process = subprocess.Popen(
                job(rough), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                process.wait(moment)
                finished += 1
                for name in moments.sample(names, -(-len(names) // 2)):
                    (rough / name).unlink()
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                seconds.append(round(moment, 2))
            if kills == arguments.kills:
                break
        last = subprocess.run(job(rough), stdout=subprocess.DEVNULL).returncode
        same = shards(calm) == shards(rough)
        rows = pyarrow.parquet.read_table(calm, columns=["index", "error"])
        report = {
            **describe_run(PACKAGES),
            "model": json.loads((calm / "_job.json").read_text(encoding="utf-8"))["model"],
            "pictures": len(set(rows["index"].to_pylist())),
            "failed_pictures": len(rows) - rows["error"].null_count,
            "shards": len(shards(calm)),
            "kills": kills,
            "seconds_before_kill": seconds,
            "runs_that_finished_between": finished,
            "exit_codes": {"undisturbed": code, "last": last},
            "byte_for_byte": same,
            "left_behind": sorted(path.name for path in rough.rglob(".*")),
            "undisturbed_s": round(whole, 1),
        }
    print(json.dumps(report))
    whole_and_clean = same and not report["left_behind"] and code == last and code in (0, 2)
    return 0 if whole_and_clean and kills == arguments.kills else 1


if __name__ == "__main__":
    sys.exit(main())
