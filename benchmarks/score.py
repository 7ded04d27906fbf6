"""POST /score beside a bare FastAPI route of the same schema: cached throughput, latency, overhead beyond the engine.

Client and server share the machine. Every request has 16 completions of about 100 characters and one of 100 adapted
users. Goals: cached 1,000 requests/s from one process on 2 cores; overhead beyond the engine under 2 ms at p50.

Example: python -m benchmarks score --requests 6000
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson

from benchmarks.environment import describe
from benchmarks.load import Caller, run_load
from benchmarks.server import ServerProcess

USERS = 100
PROMPTS = 64
COMPLETIONS = 16
CONNECTIONS = 8


def bodies() -> list[bytes]:
    """Requests that differ in user and prompt."""
    made = []
    for i in range(PROMPTS * 4):
        prompt = f"Question {i % PROMPTS}: how should one look after a houseplant that gets little light in winter?"
        completions = [
            f"Answer {j} to question {i % PROMPTS}: give it what light there is, water it less, and off the sill."
            for j in range(COMPLETIONS)
        ]
        made.append(orjson.dumps({"user_id": f"user{i % USERS}", "prompt": prompt, "completions": completions}))
    return made


@contextlib.contextmanager
def bare_route() -> Iterator[str]:
    """The peer, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.bare_route", str(port)])
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/score"
    finally:
        process.terminate()
        process.wait()


def main(argv: list[str]) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3, help="the two are measured in turn; medians are printed")
    arguments = parser.parse_args(argv)
    print(describe())
    requests = bodies()
    with tempfile.TemporaryDirectory() as folder, ServerProcess(Path(folder)) as server, bare_route() as bare_url:
        url = f"{server.url}/score"
        with server.client() as client:
            for user in range(USERS):
                pair = {"prompt": "Which?", "chosen": f"This one, {user}.", "rejected": f"That one, {user}."}
                client.post(f"/users/user{user}/adapt", json={"pairs": [pair]}).raise_for_status()
        beyond, bare_latency = overhead_beyond_engine(url, bare_url)
        run_load(url, requests, requests=len(requests), connections=4)  # fills the cache
        ours, bare = [], []
        for _ in range(arguments.rounds):
            ours.append(run_load(url, requests, requests=arguments.requests, connections=CONNECTIONS))
            bare.append(run_load(bare_url, requests, requests=arguments.requests, connections=CONNECTIONS))
        ours_alone = run_load(url, requests, requests=1000, connections=1)
        bare_alone = run_load(bare_url, requests, requests=1000, connections=1)
    failures = sum(result.failures for result in (*ours, *bare, ours_alone, bare_alone))
    print(f"{'':44}{'metareward':>12}{'bare route':>12}{'ratio':>8}")
    throughput = [float(np.median([result.per_second for result in results])) for results in (ours, bare)]
    _row("cached /score, requests/s (8 connections)", throughput)
    _row("p50 ms, 8 connections", [float(np.median([r.percentile_ms(50) for r in rs])) for rs in (ours, bare)])
    _row("p99 ms, 8 connections", [float(np.median([r.percentile_ms(99) for r in rs])) for rs in (ours, bare)])
    _row("p50 ms, 1 connection", [ours_alone.percentile_ms(50), bare_alone.percentile_ms(50)])
    _row("uncached p50 ms beyond the engine", [beyond, bare_latency])
    print(f"beyond the engine: latency at the client less the engine's time, tokenising included; failures {failures}")
    if failures:
        raise SystemExit(f"{failures} requests failed")


def _row(name: str, values: list[float]) -> None:
    print(f"{name:44}{values[0]:12.2f}{values[1]:12.2f}{values[0] / values[1]:8.2f}")


def overhead_beyond_engine(url: str, bare_url: str) -> tuple[float, float]:
    """p50 in ms over fresh texts of (latency - time in the engine), and of the bare route asked in turn."""
    overheads, bare = [], []
    with Caller(url) as ours, Caller(bare_url) as peer:
        for i in range(80):
            completions = [f"A fresh answer, number {i}-{j}, of a plain sort." for j in range(COMPLETIONS)]
            body = {"user_id": f"user{i % USERS}", "prompt": f"Fresh question {i}?", "completions": completions}
            latency_ms, answer = ours.ask(body)
            overheads.append(latency_ms - answer["timings_ms"]["engine"])
            bare.append(peer.ask(body)[0])
    return float(np.median(overheads[10:])), float(np.median(bare[10:]))
