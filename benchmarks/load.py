"""Load on a server of our own, on loopback: rate and latency, overload.

    python -m benchmarks.load rates --bundle DIR [--pictures 48] [--rounds 3]
    python -m benchmarks.load overload --bundle DIR [--seconds 300]

Every mode starts its own server process on 127.0.0.1, and is bounded in count and time. ``rates``
measures in turns the bare engine (`predict` on the same number of rows), `explain` one by one
(unpacked), `explain_many` (packed) and the server with 1, 2, 4 and 8 clients: a machine's speed
swings, so only figures of one round compare. ``overload`` ends with exit code 1 if an accepted
request has no answer, or any request another than 200 or 429.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
from PIL import Image

import vitcx
from benchmarks.command import Benchmark, bundle_option, finish, out_option
from vitcx.evaluation.speed import interleave

CLIENTS = (1, 2, 4, 8)
PACKAGES = ("onnxruntime", "fastapi", "uvicorn")
MEMORY_EVERY_SECONDS = 5
MOST_SECONDS = 900


def pictures(count: int) -> list[bytes]:
    """JPEG files of coloured blobs, 320 x 240, each another."""
    made = []
    for i in range(count):
        rng = np.random.default_rng(i)
        blobs = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        buffer = io.BytesIO()
        blobs.resize((320, 240), Image.Resampling.BICUBIC).save(buffer, "jpeg", quality=90)
        made.append(buffer.getvalue())
    return made


@contextlib.contextmanager
def serving(bundle: str, *more: str) -> Iterator[tuple[str, int]]:
    """A server process: its address and process id."""
    words = [sys.executable, "-m", "vitcx", "serve", "--bundle", bundle, "--port", "0", *more]
    environment = {k: v for k, v in os.environ.items() if k != "VITCX_TOKEN"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            url = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(90)


def percentile(values: list[float], share: float) -> float:
    return float(np.percentile(values, share)) if values else float("nan")


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rates(bundle: str, count: int, rounds: int) -> dict[str, Any]:
    """Rows (forward passes) a second: bare, unpacked, packed, and through the server."""
    files = pictures(count)
    decoded = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    latencies: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
    with vitcx.load(bundle, "onnxruntime") as explainer:
        size = explainer.manifest.input_size
        passes = sum(e.settings["forward_passes"] for e in explainer.explain_many(decoded))
        batch = np.random.default_rng(0).standard_normal(
            (explainer.session.batch_size, 3, *size), dtype=np.float32
        )
        batches = -(-passes // len(batch))

        def bare(_: int) -> None:
            for _ in range(batches):
                explainer.session.predict(batch)

        def note(name: str) -> None:
            print(f"{name} done", file=sys.stderr, flush=True)

        with serving(bundle, "--engine", "onnxruntime") as (url, _):
            calls: dict[str, Callable[[int], Any]] = {
                "bare engine": bare,
                "unpacked": lambda _: [explainer.explain(p) for p in decoded],
                "explain_many": lambda _: list(explainer.explain_many(decoded)),
            }
            for clients in CLIENTS:
                calls[f"server, {clients}"] = partial(
                    _through, url=url, files=files, clients=clients, latencies=latencies[clients]
                )
            seconds = interleave(calls, 1, rounds, note)
    rows = {
        name: [(batches * len(batch) if name == "bare engine" else passes) / s for s in samples]
        for name, samples in seconds.items()
    }
    return {
        "pictures": len(files),
        "forward_passes": passes,
        "rows_per_second": {n: round(statistics.median(v), 2) for n, v in rows.items()},
        "rounds": {name: [round(v, 2) for v in values] for name, values in rows.items()},
        # Within each round: the machine's speed swings.
        "explain_many_over_bare": ratios(rows["explain_many"], rows["bare engine"]),
        "server_8_over_explain_many": ratios(rows["server, 8"], rows["explain_many"]),
        "latency_s": {
            clients: {f"p{s}": round(percentile(values, s), 3) for s in (50, 95, 99)}
            for clients, values in latencies.items()
        },
    }


def _through(_: int, url: str, files: list[bytes], clients: int, latencies: list[float]) -> None:
    through(url, files, clients, latencies)


def ratios(values: list[float], references: list[float]) -> dict[str, Any]:
    """Round by round, since the machine's speed swings between them, and their median."""
    each = [value / reference for value, reference in zip(values, references, strict=True)]
    return {"rounds": [round(r, 3) for r in each], "median": round(statistics.median(each), 3)}


def through(url: str, files: list[bytes], clients: int, latencies: list[float]) -> None:
    def ask(file: bytes) -> None:
        seconds = timed(lambda: send(client, file).raise_for_status())
        latencies.append(seconds)

    with (
        httpx.Client(base_url=url, timeout=120, trust_env=False) as client,
        ThreadPoolExecutor(clients) as pool,
    ):
        list(pool.map(ask, files))


def send(client: httpx.Client, file: bytes) -> httpx.Response:
    return client.post("v1/explain", files={"image": ("p.jpg", file)})


def memory_mib(pid: int, what: str) -> float:
    """A figure of a process's memory: VmRSS is what it has now, VmHWM the most it ever had."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(what + ":"):
            return round(int(line.split()[1]) / 1024, 1)
    raise ValueError(f"/proc/{pid}/status has no {what}")


def figure(client: httpx.Client, name: str) -> float:
    """One of the server's own figures."""
    for line in client.get("metrics").text.splitlines():
        if line.startswith(name + " "):
            return float(line.split()[1])
    raise ValueError(f"the server has no figure {name}")


def overload(bundle: str, seconds: float, queue: int) -> dict[str, Any]:
    """Four times the measured capacity for `seconds`, open loop: nobody waits for an answer."""
    files = pictures(16)
    seconds = min(seconds, MOST_SECONDS)
    codes: Counter[str] = Counter()
    refused: list[float] = []
    answered: list[float] = []
    memory: list[tuple[float, float]] = []
    without_retry_after = 0
    with serving(bundle, "--queue", str(queue)) as (url, pid):
        warm: list[float] = []
        capacity = len(files) / timed(lambda: through(url, files, 8, warm))
        limits = httpx.Limits(max_connections=256)
        rate = 4 * capacity
        with httpx.Client(base_url=url, timeout=120, trust_env=False, limits=limits) as client:
            made_before = figure(client, "vitcx_explanations_total")

            def ask(i: int) -> None:
                nonlocal without_retry_after
                start = time.perf_counter()
                try:
                    answer = send(client, files[i % len(files)])
                except httpx.HTTPError as error:
                    codes[type(error).__name__] += 1
                    return
                codes[str(answer.status_code)] += 1
                if answer.status_code == 429 and "Retry-After" not in answer.headers:
                    without_retry_after += 1
                took = time.perf_counter() - start
                (answered if answer.status_code == 200 else refused).append(took)

            with ThreadPoolExecutor(200) as pool:
                start = time.perf_counter()
                sent = 0
                while (now := time.perf_counter() - start) < seconds:
                    while sent < now * rate:
                        pool.submit(ask, sent)
                        sent += 1
                    if len(memory) <= now / MEMORY_EVERY_SECONDS:
                        memory.append((round(now, 1), memory_mib(pid, "VmRSS")))
                    time.sleep(min(0.05, 1 / rate))
            # The pool has ended: every request has its answer, or an error in `codes`.
            took = time.perf_counter() - start
            memory.append((round(took, 1), memory_mib(pid, "VmRSS")))
            peak = memory_mib(pid, "VmHWM")
            made = int(figure(client, "vitcx_explanations_total") - made_before)
            left = int(figure(client, "vitcx_queue_depth"))
    third = max(1, len(memory) // 3)
    others = {code: count for code, count in codes.items() if code not in ("200", "429")}
    return {
        "seconds": round(took, 1),
        "queue": queue,
        "capacity_per_s": round(capacity, 2),
        "sent_per_s": round(rate, 2),
        "sent": sent,
        "accepted": codes["200"],
        "rejected": codes["429"],
        "rejected_without_retry_after": without_retry_after,
        "other_answers": others,
        # Of what the server made, all arrived, and nothing is left inside.
        "explanations_made": made,
        "left_in_queue": left,
        "every_accepted_answered": made == codes["200"] and not left and not others,
        "accepted_p50_p95_s": [round(percentile(answered, s), 3) for s in (50, 95)],
        "refused_p50_p99_s": [round(percentile(refused, s), 4) for s in (50, 99)],
        "memory_mib": {
            "first": memory[0][1],
            "last": memory[-1][1],
            "peak": peak,
            "most_in_first_third": max(mib for _, mib in memory[:third]),
            "most_in_last_third": max(mib for _, mib in memory[-third:]),
        },
        "memory_mib_at_s": memory,
    }


@click.command(cls=Benchmark)
@click.argument("mode", type=click.Choice(("rates", "overload")))
@bundle_option
@click.option("--pictures", "count", default=48, show_default=True, help="Of rates.")
@click.option("--rounds", default=3, show_default=True, help="Of rates.")
@click.option("--seconds", default=300.0, show_default=True, help="Of overload.")
@click.option("--queue", default=16, show_default=True, help="Of the server, in overload.")
@out_option("JSON file.")
def main(
    mode: str,
    bundle: str,
    count: int,
    rounds: int,
    seconds: float,
    queue: int,
    out: Path | None,
) -> None:
    """Measure rates, or what becomes of requests in an overload."""
    watchdog = threading.Timer(MOST_SECONDS + 300, lambda: os._exit(3))
    watchdog.daemon = True
    watchdog.start()
    measured = rates(bundle, count, rounds) if mode == "rates" else None
    report = measured or overload(bundle, seconds, queue)
    watchdog.cancel()
    finish({"mode": mode, **report}, out, PACKAGES)
    sys.exit(0 if report.get("every_accepted_answered", True) else 1)


if __name__ == "__main__":
    main()
