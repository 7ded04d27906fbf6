"""What a process takes on at once is bounded, in requests and in bytes, and probes are answered all the same."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from service.api.errors import install_error_handlers
from service.api.gate import Gate
from service.errors import Overloaded
from service.observability.metrics import Metrics
from service.operations.lifecycle import Lifecycle


def test_what_was_taken_on_is_given_back() -> None:
    lifecycle = Lifecycle(2, 100)
    lifecycle.begin_request()
    lifecycle.begin_request()
    with pytest.raises(Overloaded):
        lifecycle.begin_request()
    lifecycle.receive(60)
    with pytest.raises(Overloaded):
        lifecycle.receive(41)
    lifecycle.end_request(60)
    lifecycle.begin_request()
    lifecycle.receive(100)
    lifecycle.end_request(100)
    lifecycle.end_request(0)
    assert (lifecycle.requests, lifecycle.bytes) == (0, 0)


def test_a_single_request_is_bounded_by_its_own_limit_only() -> None:
    lifecycle = Lifecycle(2, 100)
    lifecycle.begin_request()
    lifecycle.receive(5000)
    assert lifecycle.bytes == 5000


def test_requests_beyond_the_bound_get_503_and_probes_an_answer() -> None:
    lifecycle, metrics = Lifecycle(2, 1000), Metrics()
    answers = asyncio.run(_while_two_wait(lifecycle, metrics))
    assert [answer.status_code for answer in answers["waiting"]] == [200, 200]
    assert answers["third"].status_code == 503
    assert answers["third"].headers["Retry-After"] == "1"
    assert answers["third"].json()["type"].endswith(":overloaded")
    assert answers["probe"].status_code == 200
    assert metrics.registry.get_sample_value("metareward_refusals_total", {"reason": "in_flight"}) == 1
    assert lifecycle.requests == lifecycle.bytes == 0


def test_bodies_beyond_the_bound_get_503_and_are_given_back() -> None:
    lifecycle, metrics = Lifecycle(10, 30), Metrics()
    answers = asyncio.run(_while_two_wait(lifecycle, metrics, body=b"x" * 12))
    assert [answer.status_code for answer in answers["waiting"]] == [200, 200]
    assert answers["third"].status_code == 503
    assert lifecycle.requests == lifecycle.bytes == 0


async def _while_two_wait(lifecycle: Lifecycle, metrics: Metrics, body: bytes = b"{}") -> dict[str, Any]:
    """Two requests that wait, a third beside them, and a probe."""
    app = FastAPI()
    go_on, waiting = asyncio.Event(), asyncio.Semaphore(0)

    @app.post("/wait")
    async def wait(request: Request) -> None:
        await request.body()
        waiting.release()
        await go_on.wait()

    @app.get("/live")
    async def live() -> None:
        pass

    install_error_handlers(app)
    app.add_middleware(Gate, metrics=metrics, lifecycle=lifecycle, max_body_bytes=100, timeout_s=20)
    transport = httpx.ASGITransport(app)
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
        two = [asyncio.create_task(client.post("/wait", content=body)) for _ in range(2)]
        for _ in two:
            await waiting.acquire()
        third = await asyncio.wait_for(client.post("/wait", content=body), 5)
        probe = await client.get("/live")
        go_on.set()
        return {"third": third, "probe": probe, "waiting": await asyncio.gather(*two)}
