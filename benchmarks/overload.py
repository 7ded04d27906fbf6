"""Ten times the requests that a server can answer: goodput, refusals, memory, recovery.

The peer is the same server at its capacity. Client, server and engine share the machine. Every request has 16
completions that no cache knows. Goals: goodput at least 90 % of the peak, refusals under 50 ms (p99), memory flat,
recovered within 5 s.

Example: python -m benchmarks overload --seconds 60 --factor 10
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import psutil

from benchmarks.environment import describe
from benchmarks.load import Caller, run_load
from benchmarks.open_loop import OpenLoad, run_open_load
from benchmarks.server import ServerProcess

COMPLETIONS = 16
WARM_UP_S = 5.0
RECOVERED_MS = 1000.0


def fresh_bodies() -> Iterator[bytes]:
    """Requests without end, no two with a text in common."""
    for i in itertools.count():
        yield orjson.dumps(
            {
                "user_id": f"user{i % 100}",
                "prompt": f"Question {i}: how should one look after a houseplant that gets little light in winter?",
                "completions": [
                    f"Answer {j} to {i}: give it what light there is, water it less, and keep it off the cold sill."
                    for j in range(COMPLETIONS)
                ],
            }
        )


def goodput(load: OpenLoad, seconds: float) -> float:
    """Requests answered with 200 a second, once the first answers have come."""
    good = sum(1 for a in load.answers if a.status == 200 and WARM_UP_S <= a.answered_at < seconds)
    return good / (seconds - WARM_UP_S)


def main(argv: list[str]) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--factor", type=float, default=10.0)
    arguments = parser.parse_args(argv)
    print(describe())
    bodies = fresh_bodies()
    with tempfile.TemporaryDirectory() as folder, ServerProcess(Path(folder)) as server:
        url = f"{server.url}/score"
        process = psutil.Process(server.pid)
        some = [next(bodies) for _ in range(2000)]
        run_load(url, some[:40], requests=40, connections=8)  # warm
        # As many as a server without a queue would need; more only wait.
        probe = run_load(url, some[40:140], requests=100, connections=16)
        count = max(64, min(1800, round(probe.per_second * 15)))
        peak = run_load(url, some[140 : 140 + count], requests=count, connections=16)
        print(
            f"capacity {peak.per_second:.1f} requests/s, p50 {peak.percentile_ms(50):.0f} ms, {peak.failures} failures"
        )
        before = process.memory_info().rss / 2**20
        load = run_open_load(url, bodies, per_second=peak.per_second * arguments.factor, seconds=arguments.seconds)
        ended = time.perf_counter()
        after = process.memory_info().rss / 2**20
        last_good = max((a.answered_at for a in load.answers), default=0.0)
        with Caller(url) as caller:
            while True:
                latency_ms, answer = caller.ask(orjson.loads(next(bodies)))
                if "rewards" in answer and latency_ms < RECOVERED_MS:
                    break
        recovered_s = max(0.0, last_good - arguments.seconds) + time.perf_counter() - ended
        settled = process.memory_info().rss / 2**20
    statuses = Counter(a.status for a in load.answers)
    refused = np.array([a.seconds for a in load.answers if a.status == 503]) * 1e3
    good_ms = np.array([a.seconds for a in load.answers if a.status == 200]) * 1e3
    without_advice = sum(1 for a in load.answers if a.status == 503 and b"retry-after" not in a.head.lower())
    print(f"sent {arguments.factor:g} times the capacity for {arguments.seconds:g} s: {dict(statuses)}")
    print(f"unanswered {load.unanswered}, not sent {load.not_sent}, 503 without Retry-After {without_advice}")
    print(
        f"goodput {goodput(load, arguments.seconds):.1f} requests/s, "
        f"{goodput(load, arguments.seconds) / peak.per_second:.0%} of the capacity"
    )
    print(f"accepted requests took p50 {np.percentile(good_ms, 50):.0f} ms, p99 {np.percentile(good_ms, 99):.0f} ms")
    if len(refused):
        print(
            f"refusals took p50 {np.percentile(refused, 50):.1f} ms, p99 {np.percentile(refused, 99):.1f} ms, "
            f"longest {refused.max():.0f} ms"
        )
    print(f"memory {before:.0f} MiB before, {after:.0f} at the end, {settled:.0f} after it")
    print(f"recovered (a fresh request within {RECOVERED_MS:g} ms) {recovered_s:.1f} s after the last was sent")
