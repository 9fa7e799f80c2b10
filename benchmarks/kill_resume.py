"""Kill a dataset job at random moments, resume it, and compare the shards byte for byte.

    python -m benchmarks.kill_resume SOURCE --bundle DIR --kills 20 --out FILE

The moments are spread over the time that the run at hand would take, from its start on; when one
ends before its moment, half of the shards are taken away, so that there is work again. Bounded in
the number of runs. Exit code 1 if anything differs, or is left behind.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.command import Benchmark, bundle_option, finish, out_option


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*.parquet"))}


def kill_and_resume(
    source: str, bundle: str, kills: int, shard_size: int, seed: int
) -> dict[str, Any]:
    """What became of a job that was killed `kills` times."""
    import pyarrow.parquet

    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        calm, rough = Path(scratch, "calm"), Path(scratch, "rough")

        def job(out: Path) -> list[str]:
            words = [sys.executable, "-m", "vitcx", "dataset", source, "--out", str(out)]
            return [*words, "--bundle", bundle, "--shard-size", str(shard_size), "--resume"]

        def timed() -> tuple[float, int]:
            start = time.perf_counter()
            code = subprocess.run(job(calm), stdout=subprocess.DEVNULL, check=False).returncode
            return time.perf_counter() - start, code

        whole, code = timed()
        nothing, _ = timed()  # to do: what a run takes beside its shards
        names = sorted(shards(calm))
        done = finished = 0
        seconds: list[float] = []
        for _ in range(4 * kills):
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
                done += 1
                seconds.append(round(moment, 2))
            if done == kills:
                break
        last = subprocess.run(job(rough), stdout=subprocess.DEVNULL, check=False).returncode
        rows = pyarrow.parquet.read_table(calm, columns=["index", "error"])
        return {
            "model": json.loads((calm / "_job.json").read_text(encoding="utf-8"))["model"],
            "pictures": len(set(rows["index"].to_pylist())),
            "failed_pictures": len(rows) - rows["error"].null_count,
            "shards": len(shards(calm)),
            "kills": done,
            "seconds_before_kill": seconds,
            "runs_that_finished_between": finished,
            "exit_codes": {"undisturbed": code, "last": last},
            "byte_for_byte": shards(calm) == shards(rough),
            "left_behind": sorted(path.name for path in rough.rglob(".*")),
            "undisturbed_s": round(whole, 1),
        }


@click.command(cls=Benchmark)
@click.argument("source")
@bundle_option
@click.option("--kills", default=20, show_default=True)
@click.option("--shard-size", default=4, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@out_option("JSON file.")
def main(
    source: str, bundle: str, kills: int, shard_size: int, seed: int, out: Path | None
) -> None:
    """Kill and resume a job over SOURCE, whatever `vitcx dataset` takes."""
    report = kill_and_resume(source, bundle, kills, shard_size, seed)
    finish(report, out, ("onnxruntime", "pillow", "pyarrow"))
    codes = report["exit_codes"]
    same = report["byte_for_byte"] and not report["left_behind"]
    whole = codes["undisturbed"] == codes["last"] and codes["last"] in (0, 2)
    sys.exit(0 if same and whole and report["kills"] == kills else 1)


if __name__ == "__main__":
    main()
