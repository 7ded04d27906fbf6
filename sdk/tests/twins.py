"""Both clients behind one face, so that a test says once what holds for both."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from metareward_client import AsyncClient, Client

KINDS = ("blocking", "awaited")

Handler = Callable[[httpx.Request], httpx.Response]

INFO = {
    "version": "0.1.0",
    "checkpoint": {"name": "toy", "checkpoint_id": "0123456789abcdef"},
    "limits": {"max_pairs": 10, "max_completions": 8, "max_text_bytes": 1000, "max_body_bytes": 4000},
}

CHANGE = {
    "user_id": "ada",
    "version": 3,
    "cause": "adapt",
    "checkpoint_id": "0123456789abcdef",
    "weights": [0.5, 0.5],
    "pairs_stored": 1,
    "pairs_deleted": 0,
    "pairs_total": 1,
    "pairs_received": 1,
    "evidence_ids": ["p1"],
    "events_received": 1,
}


class Twin:
    """A client of one kind, whose methods block either way."""

    def __init__(self, kind: str, handler: Handler | None = None, **options: Any) -> None:
        if handler is not None:
            options["transport"] = httpx.MockTransport(handler)
        self.client: Any = AsyncClient(**options) if kind == "awaited" else Client(**options)
        self._loop = asyncio.new_event_loop() if kind == "awaited" else None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        loop = self._loop
        return method if loop is None else lambda *args, **named: loop.run_until_complete(method(*args, **named))

    def __enter__(self) -> Twin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self._loop is not None:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def together(self, asks: list[dict[str, Any]]) -> list[Any]:
        """What `reward` of each is, or its error, all asked at the same time, by threads or tasks."""
        if self._loop is None:
            gate = threading.Barrier(len(asks))

            def ask(each: dict[str, Any]) -> Any:
                gate.wait()
                try:
                    return self.client.reward(**each)
                except Exception as error:
                    return error

            with ThreadPoolExecutor(len(asks)) as threads:
                return list(threads.map(ask, asks))

        async def ask_all() -> list[Any]:
            return await asyncio.gather(*(self.client.reward(**each) for each in asks), return_exceptions=True)

        return self._loop.run_until_complete(ask_all())


class Server:
    """Answers to /score; keeps what it was asked, and how many at a time."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response] | None = None) -> None:
        self._answer = answer or scored
        self._lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.most = 0
        self._now = 0

    @contextlib.contextmanager
    def _asked(self, request: httpx.Request) -> Iterator[None]:
        with self._lock:
            if request.url.path == "/score":
                self.bodies.append(json.loads(request.content))
            self._now += 1
            self.most = max(self.most, self._now)
        yield
        with self._lock:
            self._now -= 1

    def __call__(self, request: httpx.Request) -> httpx.Response:
        with self._asked(request):
            time.sleep(0.01)
            return self._answer(request)


class AsyncServer(Server):
    """The same without blocking the loop."""

    async def __call__(self, request: httpx.Request) -> httpx.Response:  # type: ignore[override]
        with self._asked(request):
            await asyncio.sleep(0.01)
            return self._answer(request)


def server_of(kind: str, answer: Callable[[httpx.Request], httpx.Response] | None = None) -> Server:
    """One that suits a kind of client."""
    return AsyncServer(answer) if kind == "awaited" else Server(answer)


def problem(status: int, kind: str = "overloaded", *, retry_after: str | None = None, **more: Any) -> httpx.Response:
    """What the server answers when it refuses."""
    body = {"type": f"urn:metareward:problem:{kind}", "status": status, "detail": "Not now.", **more}
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return httpx.Response(status, json=body, headers=headers)


def result(item: dict[str, Any]) -> dict[str, Any]:
    """A score of an item: each completion is worth its length."""
    rewards = [float(len(completion)) for completion in item["completions"]]
    order = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    user_id = item.get("user_id")
    return {"user_id": user_id, "user_state": "cold_start", "version": 0, "rewards": rewards, "order": order}


def scored(request: httpx.Request) -> httpx.Response:
    """What a server answers to /score and /info."""
    if request.url.path == "/info":
        return httpx.Response(200, json=INFO)
    body = json.loads(request.content)
    common = {"checkpoint_id": "0123456789abcdef", "timings_ms": {"total": 1.0}}
    if "items" in body:
        return httpx.Response(200, json={"results": [result(item) for item in body["items"]], **common})
    return httpx.Response(200, json={**result(body), **common})
