"""Two servers on one PostgreSQL, switched between checkpoints under load: nobody notices but by the checkpoint's id."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from switching import linked

from benchmarks.server import ServerProcess
from service.checkpoints import Checkpoint, load_checkpoint
from service.mrm import GaussianStart
from service.settings import DEMO_CHECKPOINT

REQUESTS = 3000
CALLERS = 4
SWITCHES = 12
TIMEOUT_S = 30.0


def two_checkpoints() -> tuple[Checkpoint, Checkpoint]:
    """The demo's, and one of its heads turned round and two more; each linked to the other."""
    demo = load_checkpoint(DEMO_CHECKPOINT)
    rng = np.random.default_rng(5)
    K, D = demo.A_KD.shape
    turned = np.linalg.qr(rng.normal(size=(K, K)))[0] @ demo.A_KD
    A_KD = np.vstack([turned, rng.normal(size=(2, D)) * np.abs(demo.A_KD).mean()]).astype(np.float32)
    start = GaussianStart(np.zeros(K + 2), np.eye(K + 2), 1.0)
    other = Checkpoint("other", demo.backbone, A_KD, np.zeros(K + 2, np.float32), start)
    return linked(demo, other, 0.97), linked(other, demo, 0.97)


@pytest.fixture
def servers(tmp_path: Path, postgres_url: str) -> Iterator[tuple[list[ServerProcess], str, str]]:
    """Two running servers with both checkpoints, and the ids of the two."""
    demo, other = two_checkpoints()
    demo.save(tmp_path / "demo")
    other.save(tmp_path / "other")
    settings = {"CHECKPOINT": str(tmp_path / "demo"), "CHECKPOINTS": str(tmp_path / "other")}
    settings |= {"DATABASE_URL": postgres_url, "SECRET_KEY": "s" * 64}
    processes = [ServerProcess(tmp_path / name, **settings) for name in ("one", "two")]
    try:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(ServerProcess.start, processes))
        yield processes, demo.checkpoint_id, other.checkpoint_id
    finally:
        for process in processes:
            process.kill()


def activate(server: ServerProcess, checkpoint_id: str) -> None:
    answer = httpx.post(
        f"{server.url}/admin/checkpoints/activate", json={"checkpoint_id": checkpoint_id}, timeout=TIMEOUT_S
    )
    assert answer.status_code == 200, answer.text


def test_switching_under_load_fails_no_request(servers: tuple[list[ServerProcess], str, str]) -> None:
    processes, demo, other = servers
    score: dict[str, Any] = {
        "user_id": "ada",
        "prompt": "Why?",
        "completions": ["Because.", "Nobody knows.", "Why not?"],
    }
    numbers, failures, answers = itertools.count(), [], []
    ended = threading.Event()

    def call() -> None:
        with httpx.Client(timeout=TIMEOUT_S) as client:
            while (number := next(numbers)) < REQUESTS:
                url = processes[number % 2].url
                try:
                    answer = client.post(f"{url}/score", json=score)
                except httpx.HTTPError as error:
                    failures.append(repr(error))
                    continue
                (answers if answer.status_code == 200 else failures).append(answer)

    def speak() -> None:
        """Says something between any two switches, to whichever server and checkpoint: versions grow by one."""
        for number, (process, wanted) in enumerate(zip(itertools.cycle(processes), [other, demo] * (SWITCHES // 2))):
            pair = {"prompt": "Why?", "chosen": f"Because {number}.", "rejected": "Nobody knows."}
            told = httpx.post(f"{process.url}/users/ada/adapt", json={"pairs": [pair]}, timeout=TIMEOUT_S)
            if told.status_code != 200 or told.json()["version"] != number + 1:
                failures.append(told)
            activate(process, wanted)
            here = httpx.post(
                f"{process.url}/score", json=score | {"min_version": number + 1}, timeout=TIMEOUT_S
            ).json()
            if (here["checkpoint_id"], here["version"]) != (wanted, number + 1):
                failures.append(here)
        ended.set()

    with ThreadPoolExecutor(CALLERS + 1) as threads:
        speaking = threads.submit(speak)
        calling = [threads.submit(call) for _ in range(CALLERS)]
        speaking.result()
        for each in calling:
            each.result()
    assert ended.is_set()
    assert failures == []
    assert len(answers) == REQUESTS
    # What a request was answered with is one checkpoint's view of one version, whole: whichever server answered it, and
    # whether the user was solved for there or carried.
    seen: dict[tuple[str, int], set[tuple[float, ...]]] = {}
    for answer in answers:
        said = answer.json()
        seen.setdefault((said["checkpoint_id"], said["version"]), set()).add(tuple(said["rewards"]))
    assert {checkpoint_id for checkpoint_id, _ in seen} == {demo, other}
    for rewards in seen.values():
        np.testing.assert_allclose(list(rewards), [next(iter(rewards))] * len(rewards), atol=1e-6)
    assert len({next(iter(rewards)) for rewards in seen.values()}) == len(seen)

    # The other server follows what the last switch said within about a second, and a rollback too.
    for expected, change in ((demo, None), (other, "rollback")):
        if change is not None:
            httpx.post(f"{processes[0].url}/admin/checkpoints/rollback", json={}, timeout=TIMEOUT_S).raise_for_status()
        began = time.monotonic()
        while (
            httpx.get(f"{processes[1].url}/info", timeout=TIMEOUT_S).json()["checkpoint"]["checkpoint_id"] != expected
        ):
            assert time.monotonic() - began < TIMEOUT_S, "the other server does not follow"
            time.sleep(0.02)
    for process in processes:
        assert httpx.get(f"{process.url}/ready", timeout=TIMEOUT_S).json() == {"ready": True, "degraded": []}
        metrics = httpx.get(process.metrics_url).text
        assert f'metareward_checkpoint_active{{checkpoint="{other}",name="other"}} 1.0' in metrics
