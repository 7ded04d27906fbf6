"""Ten times the requests that a server can answer: goodput, refusals, memory, recovery.

The peer is the same server at its capacity. Client, server and engine share the machine. Every request has 16
completions that no cache knows. Goals: goodput at least 90 % of the peak, refusals under 50 ms (p99), memory flat,
recovered within 5 s.

Example: python -m benchmarks overload --seconds 60 --factor 10
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
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
# Full before the overload begins: fresh texts would fill the usual one all the while, and memory with it.
SMALL_CACHE = {"BASE_REWARD_CACHE_ENTRIES": "500"}


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


@dataclass(frozen=True)
class Overload:
    """What an overloaded server did.

    Attributes:
        capacity: Requests a second that 16 clients without a pause get answered, before and after; the machine's own
            speed drifts.
        load: Every answer under overload.
        seconds: How long it lasted.
        recovered_s: From the last request until a fresh one was answered within `RECOVERED_MS`.
        memory_mib: Resident memory every second, from before the first request to after the last answer.
    """

    capacity: tuple[float, float]
    load: OpenLoad
    seconds: float
    recovered_s: float
    memory_mib: list[float]

    @property
    def goodput(self) -> float:
        """Requests answered with 200 a second, once the first answers have come."""
        good = sum(1 for a in self.load.answers if a.status == 200 and WARM_UP_S <= a.answered_at < self.seconds)
        return good / (self.seconds - WARM_UP_S)

    def milliseconds(self, status: int) -> np.ndarray:
        """How long the answers of one status took."""
        return np.array([a.seconds for a in self.load.answers if a.status == status]) * 1e3

    @property
    def without_advice(self) -> int:
        """Refusals that do not say when to come back."""
        return sum(1 for a in self.load.answers if a.status == 503 and b"retry-after" not in a.head.lower())


def overload(server: ServerProcess, seconds: float, factor: float, probes: int = 100) -> Overload:
    """Find the capacity of a server, then send `factor` times as much for `seconds`."""
    url = f"{server.url}/score"
    process = psutil.Process(server.pid)
    bodies = fresh_bodies()
    warm = min(40, probes)
    run_load(url, list(itertools.islice(bodies, warm)), requests=warm, connections=8)
    probe = run_load(url, list(itertools.islice(bodies, probes)), requests=probes, connections=16)
    count = max(probes, min(2000, round(probe.per_second * seconds / 4)))
    peak = run_load(url, list(itertools.islice(bodies, count)), requests=count, connections=16)
    with _watched(process) as memory_mib:
        load = run_open_load(url, bodies, per_second=peak.per_second * factor, seconds=seconds)
    ended = time.perf_counter()
    # The answers to what was accepted count as part of the recovery.
    draining_s = max(0.0, max((a.answered_at for a in load.answers), default=0.0) - seconds)
    with Caller(url) as caller:
        while True:
            latency_ms, answer = caller.ask(orjson.loads(next(bodies)))
            if "rewards" in answer and latency_ms < RECOVERED_MS:
                break
    recovered_s = draining_s + time.perf_counter() - ended
    again = run_load(url, list(itertools.islice(bodies, count)), requests=count, connections=16)
    return Overload((peak.per_second, again.per_second), load, seconds, recovered_s, memory_mib)


@contextlib.contextmanager
def _watched(process: psutil.Process) -> Iterator[list[float]]:
    """Resident memory in MiB, every second while the block runs."""
    samples: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while True:
            samples.append(process.memory_info().rss / 2**20)
            if ended.wait(1.0):
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        ended.set()
        watcher.join()


def describe_overload(found: Overload, factor: float) -> str:
    """The result in words."""
    good_ms, refused_ms = found.milliseconds(200), found.milliseconds(503)
    lines = [
        f"capacity {found.capacity[0]:.1f} requests/s before, {found.capacity[1]:.1f} after; "
        f"sent {factor:g} times as many for {found.seconds:g} s: "
        f"{dict(Counter(a.status for a in found.load.answers))}",
        f"unanswered {found.load.unanswered}, not sent {found.load.not_sent}, "
        f"503 without Retry-After {found.without_advice}",
        f"goodput {found.goodput:.1f} requests/s, {found.goodput / max(found.capacity):.0%} of the larger capacity",
        f"accepted requests took p50 {np.percentile(good_ms, 50):.0f} ms, p99 {np.percentile(good_ms, 99):.0f} ms",
    ]
    if len(refused_ms):
        lines.append(
            f"refusals took p50 {np.percentile(refused_ms, 50):.1f} ms, p99 {np.percentile(refused_ms, 99):.1f} ms, "
            f"longest {refused_ms.max():.0f} ms"
        )
    quarters = [part.mean() for part in np.array_split(np.array(found.memory_mib), 4)]
    told = ", ".join(f"{quarter:.0f}" for quarter in quarters)
    lines.append(f"memory {found.memory_mib[0]:.0f} MiB before; mean of each quarter {told}")
    lines.append(f"a fresh request within {RECOVERED_MS:g} ms again {found.recovered_s:.1f} s after the last was sent")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--factor", type=float, default=10.0)
    arguments = parser.parse_args(argv)
    print(describe())
    with tempfile.TemporaryDirectory() as folder, ServerProcess(Path(folder), **SMALL_CACHE) as server:
        print(describe_overload(overload(server, arguments.seconds, arguments.factor), arguments.factor))
