"""The same traffic for long: memory, file descriptors, threads and connections must stay where they are.

Caches are small, so that they are full before the first measurement.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from redis_server import RedisServer

from benchmarks.server import ServerProcess
from chaos.conftest import FULL
from chaos.oracle import Oracle
from chaos.traffic import Traffic

SECRET = "a secret that every replica has, of length 40"
MOST_GROWTH = 0.02


@dataclass(frozen=True)
class Sample:
    """One look at a process."""

    at_s: float
    rss_mib: float
    files: int
    threads: int
    connections: int


def look(process: psutil.Process, began: float) -> Sample:
    with process.oneshot():
        return Sample(
            time.monotonic() - began,
            process.memory_info().rss / 2**20,
            process.num_fds(),
            process.num_threads(),
            len(process.net_connections("tcp")),
        )


@pytest.mark.timeout(1800)
def test_nothing_grows(tmp_path: Path, postgres_url: str, redis_server: RedisServer, oracle: Oracle) -> None:
    minutes = 20.0 if FULL else 0.15
    settings = {
        "DATABASE_URL": postgres_url,
        "REDIS_URL": redis_server.url,
        "SECRET_KEY": SECRET,
        "BASE_REWARD_CACHE_ENTRIES": "50",
        "USER_CACHE_ENTRIES": "10",
    }
    samples = []
    with ServerProcess(tmp_path, **settings) as server:
        process = psutil.Process(server.pid)
        traffic = Traffic(oracle, lambda: [server.url], clients=16, erase_share=0.02, pause_s=0.01)
        began = time.monotonic()
        with traffic.running() as report:
            while time.monotonic() - began < minutes * 60:
                time.sleep(minutes * 60 / 120)
                samples.append(look(process, began))
    # The first quarter fills caches, pools and the allocator's arenas.
    settled = samples[len(samples) // 4 :]
    first, last = settled[: len(settled) // 4], settled[-len(settled) // 4 :]
    growth = {
        name: float(np.median([getattr(s, name) for s in last]) / np.median([getattr(s, name) for s in first]) - 1)
        for name in ("rss_mib", "files", "threads", "connections")
    }
    print(f"\nsoak of {minutes:g} min: {report}")
    print("growth from the second quarter to the last: " + ", ".join(f"{k} {v:+.2%}" for k, v in growth.items()))
    for sample in settled[:: max(1, len(settled) // 10)]:
        print(
            f"  {sample.at_s:6.0f} s  {sample.rss_mib:6.1f} MiB  {sample.files} files  {sample.threads} threads  "
            f"{sample.connections} connections"
        )
    assert report.problems() == []
    assert set(report.statuses()) <= {200, 204}
    # A short run still fills the allocator's arenas: only leaks by the request would show.
    assert growth["rss_mib"] < (MOST_GROWTH if FULL else 0.10)
    for name in ("files", "threads", "connections"):
        values = [getattr(s, name) for s in settled]
        assert np.median(values[-len(values) // 4 :]) <= np.median(values[: len(values) // 4]) + 1, f"{name}: {values}"
