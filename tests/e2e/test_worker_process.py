"""`metareward worker` and `metareward serve` as processes, the second one without torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.server import ServerProcess
from benchmarks.worker import WorkerProcess

ROOT = Path(__file__).resolve().parents[2]
ADAPT = json.loads((ROOT / "examples/adapt.json").read_text())
SCORE = json.loads((ROOT / "examples/score.json").read_text())
KEY = "0123456789abcdef" * 2
# Texts that a client rendered.
RENDERED = [
    ("/classify", {"model": "demo@ada", "input": "Why?\n\nBecause of air."}),
    ("/classify", {"model": "demo", "input": [[101, 2339, 1029, 102]]}),
    ("/v1/openrlhf/get_reward", {"query": ["Why? Because."], "prompts": ["Why?"], "labels": ["ada"]}),
]

WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "transformers"):
    sys.modules[name] = None  # importing it raises ImportError, as where it is not installed
sys.argv = ["metareward", "serve"]
runpy.run_module("service", run_name="__main__")
"""


class BareServer(ServerProcess):
    """`metareward serve` where neither torch nor transformers can be imported."""

    command = ("-c", WITHOUT_TORCH)


def body(n: int) -> dict[str, object]:
    return {
        "user_id": "ada",
        "prompt": f"Why is {n} odd?",
        "completions": [f"Because of {n} and {i}." for i in range(4)],
    }


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


def test_a_server_without_torch_over_a_worker_gives_the_rewards_of_one_with_its_own(tmp_path: Path) -> None:
    with WorkerProcess(tmp_path, ENGINE_API_KEY=KEY) as worker, ServerProcess(tmp_path / "embedded") as embedded:
        with BareServer(tmp_path / "bare", ENGINE_URL=worker.url, ENGINE_API_KEY=KEY) as bare:
            with bare.client() as remote, embedded.client() as local:
                for client in (remote, local):
                    assert client.post("/users/ada/adapt", json=ADAPT).json()["version"] == 1
                nobodys = {**body(1), "user_id": None, "completions": ["", "Because.", " \n"]}
                for request in (SCORE, body(1), body(2), nobodys):
                    answers = [client.post("/score", json=request).json() for client in (remote, local)]
                    np.testing.assert_allclose(answers[0]["rewards"], answers[1]["rewards"], rtol=0, atol=1e-9)
                    assert answers[0]["order"] == answers[1]["order"]
                for path, rendered in RENDERED:
                    given, wanted = [client.post(path, json=rendered).json() for client in (remote, local)]
                    given, wanted = [answer.get("rewards") or answer["data"][0]["probs"] for answer in (given, wanted)]
                    np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-9)
                assert remote.get("/ready").json() == {"ready": True, "degraded": []}
                backbone = remote.get("/info").json()["backbone"]
                assert (backbone["id"], backbone["workers"]) == ("minilm", 1)

                worker.kill()
                until(lambda: remote.get("/ready").json()["degraded"] != [])
                assert remote.get("/ready").status_code == 200
                assert remote.post("/score", json=body(1)).status_code == 200, "cached texts still score"
                refused = remote.post("/score", json=body(3))
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) >= 1
                worker.start()
                until(lambda: remote.post("/score", json=body(3)).status_code == 200)
            assert bare.stop() in (0, -signal.SIGTERM)
            assert KEY not in bare.output
        assert f"ENGINE_URL={worker.url} metareward serve" in worker.output
        assert worker.stop() in (0, -signal.SIGTERM)
        assert KEY not in worker.output


def test_one_of_two_workers_is_killed_under_load_and_the_other_ends_cleanly_and_no_client_notices(
    tmp_path: Path,
) -> None:
    settings = {"OMP_NUM_THREADS": "1", "DRAIN_DELAY_S": "0.5"}
    with WorkerProcess(tmp_path, **settings) as one, WorkerProcess(tmp_path, **settings) as two:
        urls = f"{one.url}, {two.url}/"
        with ServerProcess(tmp_path, ENGINE_URL=urls, BASE_REWARD_CACHE_TTL_S="0.001") as server:
            statuses: list[int] = []
            rewards: dict[int, list[float]] = {}

            def load(first: int) -> None:
                with server.client() as client:
                    for n in range(first, first + 12):
                        response = client.post("/score", json=body(n))
                        statuses.append(response.status_code)
                        rewards[n] = response.json().get("rewards", [])

            threads = [threading.Thread(target=load, args=(1000 * i,)) for i in range(3)]
            for thread in threads:
                thread.start()
            until(lambda: len(statuses) > 6)
            one.kill()
            for thread in threads:
                thread.join(120)
            assert statuses == [200] * 36
            with server.client() as client:
                for n in list(rewards)[::6]:  # the cache has forgotten them, so the worker that is left computes them
                    again = client.post("/score", json=body(n)).json()["rewards"]
                    np.testing.assert_allclose(rewards[n], again, atol=1e-4)  # float32, in another batch
        ends_only_after_its_last_answer(two)


def test_a_worker_that_others_could_reach_without_a_key_does_not_start(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "service", "worker", "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "DATA_DIR": str(tmp_path), "WORKER_PORT": "0", "WORKER_METRICS_PORT": "0"},
        check=False,
    )
    assert result.returncode == 2
    assert "ENGINE_API_KEY" in result.stderr
    assert "Traceback" not in result.stderr


def ends_only_after_its_last_answer(worker: WorkerProcess) -> None:
    with worker.client() as client, worker.client() as other:
        assert other.get("/ready").json() == {"status": "ready", "queued_tokens": 0}
        texts = [[101, *range(2000, 2200), 102]] * 12
        answers: list[int] = []
        asking = threading.Thread(
            target=lambda: answers.append(client.post("/classify", json={"input": texts}).status_code)
        )
        asking.start()
        until(lambda: other.get("/ready").json()["queued_tokens"] > 0 or bool(answers))
        status = worker.stop()
        asking.join(60)
    assert answers == [200]
    assert status in (0, -signal.SIGTERM)
