"""Replicas are replaced one after the other under load, as an orchestrator does; no request may fail."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx

from benchmarks.server import ServerProcess
from chaos.conftest import FULL
from chaos.oracle import Oracle
from chaos.traffic import Traffic

SECRET = "a secret that every replica has, of length 40"


class Balancer:
    """Sends traffic to replicas that say that they are ready, asking each a few times a second."""

    def __init__(self, replicas: list[ServerProcess]) -> None:
        self._replicas = replicas
        self._ready: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Balancer:
        self._thread.start()
        while not self._ready:
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)

    def urls(self) -> list[str]:
        """Where a request may go now."""
        return self._ready

    def _watch(self) -> None:
        with httpx.Client(timeout=5) as http:
            while not self._ended.wait(0.2):
                ready = []
                for replica in self._replicas:
                    url = replica.url
                    try:
                        if http.get(f"{url}/ready").status_code == 200:
                            ready.append(url)
                    except httpx.HTTPError:
                        pass
                self._ready = ready


def test_no_request_fails_while_replicas_are_replaced(tmp_path: Path, postgres_url: str, oracle: Oracle) -> None:
    settings = {"DATABASE_URL": postgres_url, "SECRET_KEY": SECRET, "DRAIN_DELAY_S": "2"}
    replicas = [ServerProcess(tmp_path / str(i), **settings) for i in range(2)]
    with replicas[0], replicas[1], Balancer(replicas) as balancer:
        traffic = Traffic(oracle, balancer.urls, clients=32 if FULL else 8, pause_s=0.02)
        with traffic.running() as report:
            time.sleep(1)
            for _ in range(5 if FULL else 1):
                for replica in replicas:
                    replica.stop()
                    replica.start()
                    while replica.url not in balancer.urls():
                        time.sleep(0.1)
    print(f"\nrolling restart: {report}, slowest {report.slowest_s():.2f} s")
    assert report.problems() == []
    assert set(report.statuses()) == {200}
    assert report.statuses("adapt")[200] > 8
