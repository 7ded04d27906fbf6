"""Two REST processes over two workers, one of which is killed again and again: every request has one answer, and the
right one."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from benchmarks.server import ServerProcess
from benchmarks.worker import WorkerProcess
from chaos.conftest import FULL
from chaos.oracle import Oracle
from chaos.traffic import Traffic

SECRET = "a secret that every replica has, of length 40"
ENGINE_KEY = "e" * 40
KILLS, EVERY_S, CLIENTS = (10, 30.0, 64) if FULL else (2, 1.0, 16)


@pytest.mark.timeout(900)
def test_workers_may_die(tmp_path: Path, postgres_url: str, oracle: Oracle) -> None:
    workers = [WorkerProcess(tmp_path / f"worker{i}", ENGINE_API_KEY=ENGINE_KEY) for i in range(2)]
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.enter_context(worker)
        settings = {
            "DATABASE_URL": postgres_url,
            "SECRET_KEY": SECRET,
            "ENGINE_URL": ",".join(worker.url for worker in workers),
            "ENGINE_API_KEY": ENGINE_KEY,
            # Every text goes to a worker.
            "BASE_REWARD_CACHE_ENTRIES": "1",
        }
        servers = [stack.enter_context(ServerProcess(tmp_path / f"api{i}", **settings)) for i in range(2)]
        traffic = Traffic(oracle, lambda: [server.url for server in servers], clients=CLIENTS)
        with traffic.running() as report:
            began = time.monotonic()
            for i in range(KILLS):
                time.sleep(max(1.0, began + (i + 1) * EVERY_S - time.monotonic()))
                workers[i % 2].kill()
                # Behind the last one there is nothing to see but the other at work.
                if FULL or i + 1 < KILLS:
                    workers[i % 2].start()
            time.sleep(1)
    print(f"\n{KILLS} workers killed in {time.monotonic() - began:.0f} s: {report}, slowest {report.slowest_s():.1f} s")
    assert report.problems() == []
    assert set(report.statuses()) <= {200, 503}
    assert report.statuses("score")[200] > 5 * CLIENTS
