"""How a server ends: nothing that it has taken on is lost, and it takes its leave in time."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import httpx

from benchmarks.server import ServerProcess


def long_score(i: int) -> dict[str, object]:
    completions = [f"Answer {i}.{j}, which nobody has scored before, about this and that." for j in range(40)]
    return {"user_id": "ada", "prompt": f"Question {i}?", "completions": completions}


def test_what_is_in_flight_is_answered_before_the_end(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, DRAIN_DELAY_S="0") as server:
        answers: list[httpx.Response] = []

        def ask(i: int) -> None:
            answers.append(httpx.post(f"{server.url}/score", json=long_score(i), timeout=60))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        while _metric(server, "metareward_in_flight_requests") < 4:
            time.sleep(0.01)
        assert server.stop() in (0, -signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert [answer.status_code for answer in answers] == [200] * 4
        assert all(len(answer.json()["rewards"]) == 40 for answer in answers)


def test_a_draining_server_says_so_and_serves_on_until_a_second_signal(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, DRAIN_DELAY_S="60") as server:
        with server.client() as client:
            assert client.get("/ready").status_code == 200
            os.kill(server.pid, signal.SIGTERM)
            while client.get("/ready").status_code == 200:
                time.sleep(0.02)
            assert client.get("/live").status_code == 200
            answer = client.post("/score", json=long_score(9))
            assert answer.status_code == 200
            assert answer.headers["connection"] == "close"
            assert _metric(server, "metareward_draining") == 1
        began = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        server.wait()
        assert time.monotonic() - began < 30, "a second signal does not wait for the delay"


def test_what_takes_too_long_gets_503_and_not_a_broken_connection(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, DRAIN_TIMEOUT_S="1", MAX_QUEUE_WAIT_S="600") as server:
        answers: list[httpx.Response] = []
        body = {"user_id": "ada", "prompt": "Go on.", "completions": [f"{i} " + "word " * 400 for i in range(400)]}
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{server.url}/score", json=body, timeout=60))
        )
        asking.start()
        while _metric(server, "metareward_queue_tokens") == 0:
            time.sleep(0.01)
        os.kill(server.pid, signal.SIGTERM)
        asking.join(60)
        assert answers[0].status_code == 503
        assert answers[0].headers["Retry-After"]
        assert answers[0].json()["type"].endswith(":draining")
        server.wait()


def _metric(server: ServerProcess, name: str) -> float:
    lines = httpx.get(server.metrics_url).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " "))
