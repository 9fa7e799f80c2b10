"""Bad luck and bad will against a server of our own, beside an honest client.

    python -m benchmarks.attack --bundle demo --scale 1 --seconds 1800 --out FILE

One honest client asks all the time; its times alone are measured first. Beside it come generated
bad requests (10,000 at scale 1), mutated pictures in every accepted format (20,000), silent
connections (1,000) with clients that send byte by byte (64), and, in a process of its own, mutated
bundles (1,000) are opened. Everything is on 127.0.0.1 and bounded by `--seconds`. Exit code 1 if
any answer was a 500, any request hung, the server died, or a bundle ended in anything but an
explanation or one line.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.attack_bundles import bundles
from benchmarks.attack_clients import (
    Honest,
    attack,
    connections,
    memory_mib,
    model_of,
    picture_request,
    serving,
)
from benchmarks.bad_input import bad_request, good_pictures, mutated
from benchmarks.command import Benchmark, bundle_option, finish, out_option

REQUESTS, PICTURES, BUNDLES, SILENT, TRICKLING = 10_000, 20_000, 1_000, 1_000, 64
# Of `--seconds`, what each part may take.
SHARES = {"alone": 0.05, "requests": 0.2, "pictures": 0.4, "connections": 0.05, "bundles": 0.3}


@click.command("attack", cls=Benchmark)
@bundle_option
@click.option("--scale", default=1.0, show_default=True, help="Share of the counts.")
@click.option("--seconds", default=1800.0, show_default=True, help="For everything together.")
@out_option("Where the report is kept.")
def main(bundle: str, scale: float, seconds: float, out: Path | None) -> None:
    """Attack a server of our own with bad input and bad connections, beside an honest client."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = int(SILENT * scale) + 500
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if most < 0 else min(most, wanted), most))
    allowed = {name: share * seconds for name, share in SHARES.items()}
    report: dict[str, Any] = {"scale": scale}
    with serving(bundle) as (process, port):
        honest = Honest(port)
        honest.start()
        time.sleep(min(30, allowed["alone"]))
        report["honest_alone"] = honest.end()
        report["quiet_memory_mib"] = memory_mib(process.pid)
    good = good_pictures()
    files = sorted(good.values())
    report["formats"] = sorted(good)
    with serving(bundle) as (process, port):
        model, size = model_of(port)

        def request(rng: random.Random) -> bytes:
            return bad_request(rng, files[0], model, size)

        def picture(rng: random.Random) -> bytes:
            file = mutated(rng, rng.choice(files), rng.choice(files))
            return picture_request(file)

        for name, work in (
            ("requests", lambda: attack(port, int(REQUESTS * scale), request, allowed["requests"])),
            ("pictures", lambda: attack(port, int(PICTURES * scale), picture, allowed["pictures"])),
            (
                "connections",
                lambda: connections(
                    port,
                    int(SILENT * scale),
                    int(TRICKLING * scale),
                    min(60, allowed["connections"]),
                ),
            ),
        ):
            honest = Honest(port)
            honest.start()
            start = time.monotonic()
            report[name] = work()
            report[name]["took_s"] = round(time.monotonic() - start, 1)
            report[name]["honest_beside"] = honest.end()
            click.echo(f"{name}: {json.dumps(report[name])}", err=True)
        report["server_alive"] = process.poll() is None
        report["attacked_memory_mib"] = memory_mib(process.pid)
    report["bundles"] = bundles(int(BUNDLES * scale), bundle, allowed["bundles"])
    phases = [report[name] for name in ("requests", "pictures", "connections", "bundles")]
    honest_failures = sum(
        count
        for phase in phases[:3]
        for code, count in phase["honest_beside"]["answers"].items()
        if code != "200"
    )
    report["honest_failures"] = honest_failures
    report["failures"] = sum(phase["failures"] for phase in phases)
    report["honest_over_alone"] = {
        name: round(
            max(phase["honest_beside"][name] for phase in phases[:3])
            / max(1e-9, report["honest_alone"][name]),
            2,
        )
        for name in ("p50_s", "p95_s", "most_s")
    }
    report["memory_over_quiet"] = round(
        report["attacked_memory_mib"] / max(1.0, report["quiet_memory_mib"]), 2
    )
    finish(report, out, ("onnxruntime", "fastapi", "uvicorn", "pillow"))
    sys.exit(bool(report["failures"] or honest_failures or not report["server_alive"]))


if __name__ == "__main__":
    main()
