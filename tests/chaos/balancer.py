"""What stands before replicas, as an orchestrator has it."""

from __future__ import annotations

import threading
import time

import httpx

from benchmarks.server import ServerProcess


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
