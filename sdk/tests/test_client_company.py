"""Clients among tasks that are cancelled, event loops that end, threads that come and go, and forks."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from twins import KINDS, AsyncServer, Twin, scored

import metareward_client as mc


def item(prompt: str, completion: str) -> mc.ScoreItem:
    return mc.ScoreItem(prompt=prompt, completions=[completion])


def test_a_cancelled_task_leaves_and_takes_nobody_along() -> None:
    server = AsyncServer()

    async def main() -> None:
        async with mc.AsyncClient(transport=httpx.MockTransport(server), batch_window_s=0.05) as client:
            stays = asyncio.ensure_future(client.reward("p", "abc"))
            goes = asyncio.ensure_future(client.reward("p", "gone"))
            await asyncio.sleep(0)
            goes.cancel()
            assert await stays == 3.0
            with pytest.raises(asyncio.CancelledError):
                await goes
        assert server.bodies[0]["items"][0]["completions"] == ["abc"], "what nobody waits for is not sent"

    asyncio.run(main())


def test_a_request_that_nobody_waits_for_any_more_is_ended() -> None:
    arrived, ended = asyncio.Event(), asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        arrived.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return scored(request)

    async def main() -> None:
        async with mc.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            tasks = [asyncio.ensure_future(client.reward("p", "a" * i)) for i in range(3)]
            await asyncio.wait_for(arrived.wait(), 5)
            for task in tasks:
                task.cancel()
            await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(main())


def test_a_cancelled_score_many_ends_its_requests() -> None:
    arrived, ended = asyncio.Event(), asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/info":
            return scored(request)
        arrived.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return scored(request)

    async def main() -> None:
        async with mc.AsyncClient(transport=httpx.MockTransport(answer), batch_size=1) as client:
            task = asyncio.ensure_future(client.score_many([item(f"p{i}", "a") for i in range(4)]))
            await asyncio.wait_for(arrived.wait(), 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert ended.is_set()

    asyncio.run(main())


def test_one_client_serves_event_loops_one_after_another_and_beside_each_other() -> None:
    client = mc.AsyncClient(transport=httpx.MockTransport(AsyncServer()))

    async def ask(length: int) -> list[float]:
        rewards = await asyncio.gather(*(client.reward("p", "x" * (length + i)) for i in range(4)))
        (score,) = await client.score_many([item("p", "x" * length)])
        return [*rewards, *score.rewards]

    for length in (1, 2):
        assert asyncio.run(ask(length)) == [length, length + 1, length + 2, length + 3, length]
    with ThreadPoolExecutor(4) as threads:
        assert [found[0] for found in threads.map(lambda length: asyncio.run(ask(length)), range(4))] == [0, 1, 2, 3]


def test_threads_that_send_are_there_while_there_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metareward_client._sync_rewards.IDLE_S", 0.05)
    with mc.Client(transport=httpx.MockTransport(scored)) as client:
        before = threading.enumerate()
        assert client.reward("p", "ab") == 2.0
        (sender,) = [thread for thread in threading.enumerate() if thread not in before]
        sender.join(5)
        assert not sender.is_alive()
        assert client.reward("p", "abc") == 3.0


def _in_a_child(client: Any, answers: Any) -> None:
    if isinstance(client, mc.Client):
        answers.put([client.reward("p", "abc"), client.score("p", ["a"]).rewards[0]])
    else:

        async def ask() -> list[float]:
            return [await client.reward("p", "abc"), (await client.score("p", ["a"])).rewards[0]]

        answers.put(asyncio.run(ask()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_client_works_behind_a_fork_while_the_parent_uses_it(kind: str) -> None:
    context = multiprocessing.get_context("fork")
    held = threading.Event()

    def answer(request: httpx.Request) -> httpx.Response:
        # In the parent a request is under way, in a thread that the child has not got.
        if b"held" in request.content:
            held.wait(10)
        return scored(request)

    with Twin(kind, answer) as twin:
        other = threading.Thread(target=lambda: twin.together([{"prompt": "p", "completion": "held"}]))
        other.start()
        answers = context.Queue()
        child = context.Process(target=_in_a_child, args=(twin.client, answers))
        child.start()
        try:
            assert answers.get(timeout=10) == [3.0, 1.0]
        finally:
            held.set()
            child.join(10)
            other.join(10)
        assert child.exitcode == 0
