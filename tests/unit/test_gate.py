"""The gate around the application: clients that leave, and faults of our own."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.api.errors import install_error_handlers
from service.api.gate import Gate
from service.errors import ConfigurationError
from service.observability.logging import JsonFormatter
from service.observability.metrics import Metrics
from service.operations.lifecycle import Lifecycle

SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/",
    "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
}


def test_the_work_of_a_client_that_left_is_cancelled() -> None:
    metrics = Metrics()
    outcome: list[str] = []
    sent: list[Any] = []

    async def works_long(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            outcome.append("cancelled")
            raise

    async def path() -> None:
        left = asyncio.Event()
        events = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

        async def receive() -> Any:
            for event in events:
                return event
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(event: Any) -> None:
            sent.append(event)

        gate = Gate(works_long, metrics=metrics, lifecycle=Lifecycle(10, 10_000), max_body_bytes=100, timeout_s=20)
        request = asyncio.create_task(gate(dict(SCOPE), receive, send))
        await asyncio.sleep(0.2)
        assert not request.done()
        left.set()
        await asyncio.wait_for(request, 5)

    asyncio.run(path())
    assert outcome == ["cancelled"]
    assert sent == []
    assert metrics.registry.get_sample_value("metareward_requests_total", {"route": "unmatched", "status": "499"}) == 1


def test_a_server_that_is_told_to_stop_is_not_taken_for_a_client_that_left() -> None:
    async def path() -> None:
        async def receive() -> Any:
            await asyncio.sleep(30)

        async def works_long(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(30)

        gate = Gate(works_long, metrics=Metrics(), lifecycle=Lifecycle(10, 10_000), max_body_bytes=100, timeout_s=20)
        request = asyncio.create_task(gate(dict(SCOPE), receive, lambda event: asyncio.sleep(0)))
        await asyncio.sleep(0.01)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(path())


@pytest.mark.parametrize("fault", [RuntimeError("ours"), ConfigurationError("ours")])
def test_a_fault_of_ours_is_a_problem_whose_request_id_is_in_the_log(
    fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()

    @app.get("/fails")
    async def fails() -> None:
        raise fault

    install_error_handlers(app)
    app.add_middleware(Gate, metrics=Metrics(), lifecycle=Lifecycle(10, 10_000), max_body_bytes=100, timeout_s=20)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/fails", headers={"x-request-id": "mine"})

    caplog.handler.setFormatter(JsonFormatter())
    with caplog.at_level(logging.ERROR):
        response = asyncio.run(ask())
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == response.json()["request_id"] == "mine"
    assert "ours" not in response.text
    assert {"level": "error", "request_id": "mine"}.items() <= json.loads(caplog.text.splitlines()[0]).items()


LOOPBACK = {"localhost": 200, "127.0.0.1:8000": 200, "[::1]:8000": 200, "LocalHost": 200}
OTHERS = {"evil.example": 421, "127.0.0.1.evil.example": 421, "10.0.0.7:8000": 421, "": 421, "[": 421}


@pytest.mark.parametrize(
    ("names", "path", "expected"),
    [
        (frozenset(), "/info", LOOPBACK | OTHERS),
        (frozenset(), "/ready", LOOPBACK | OTHERS),
        (frozenset({"rewards.example.org"}), "/info", LOOPBACK | OTHERS | {"Rewards.Example.Org:443": 200}),
        (frozenset({"rewards.example.org"}), "/ready", dict.fromkeys([*LOOPBACK, *OTHERS], 200)),  # probes by address
        (None, "/info", dict.fromkeys([*LOOPBACK, *OTHERS], 200)),
    ],
)
def test_only_its_own_names_are_answered(names: frozenset[str] | None, path: str, expected: dict[str, int]) -> None:
    async def answers(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    gate = Gate(
        answers,
        metrics=Metrics(),
        lifecycle=Lifecycle(10, 10_000),
        max_body_bytes=100,
        timeout_s=20,
        host_names=names,
    )

    async def status(host: str) -> int:
        sent: list[Any] = []

        async def send(event: Any) -> None:
            sent.append(event)

        scope = {"type": "http", "method": "GET", "path": path, "headers": [(b"host", host.encode())]}
        await gate(scope, lambda: asyncio.sleep(30), send)  # type: ignore[arg-type, return-value]
        return int(sent[0]["status"])

    async def path_of_all() -> dict[str, int]:
        return {host: await status(host) for host in expected}

    assert asyncio.run(path_of_all()) == expected
