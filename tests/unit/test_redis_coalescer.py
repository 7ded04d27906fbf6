"""One fetch for the questions of many callers: every caller gets exactly its own answers."""

from __future__ import annotations

import asyncio

import pytest

from service.store.redis_coalescer import Coalescer


class Source:
    """Doubles numbers; notes every fetch; waits for `gate` where told to."""

    def __init__(self) -> None:
        self.fetches: list[list[int]] = []
        self.gate: asyncio.Event | None = None
        self.failure: Exception | None = None
        self.fetching = asyncio.Event()

    async def fetch(self, items: list[int]) -> list[int]:
        self.fetches.append(list(items))
        self.fetching.set()
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return [2 * item for item in items]


def test_callers_of_one_turn_share_a_fetch() -> None:
    async def path() -> None:
        source = Source()
        coalescer = Coalescer(source.fetch, max_items=100)
        answers = await asyncio.gather(*(coalescer.ask([i, i + 100]) for i in range(10)))
        assert answers == [[2 * i, 2 * i + 200] for i in range(10)]
        assert len(source.fetches) == 1
        assert await coalescer.ask([]) == []
        assert len(source.fetches) == 1

    asyncio.run(path())


def test_those_who_come_during_a_fetch_share_the_next_one() -> None:
    async def path() -> None:
        source = Source()
        source.gate = asyncio.Event()
        coalescer = Coalescer(source.fetch, max_items=100)
        first = asyncio.create_task(coalescer.ask([1]))
        await source.fetching.wait()
        others = [asyncio.create_task(coalescer.ask([i])) for i in (2, 3)]
        await asyncio.sleep(0.01)
        assert source.fetches == [[1]]
        source.gate.set()
        assert await asyncio.gather(first, *others) == [[2], [4], [6]]
        assert source.fetches == [[1], [2, 3]]

    asyncio.run(path())


def test_a_fetch_holds_whole_callers_up_to_its_bound() -> None:
    async def path() -> None:
        source = Source()
        coalescer = Coalescer(source.fetch, max_items=4)
        asked = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10, 11, 12], [13]]
        answers = await asyncio.gather(*(coalescer.ask(items) for items in asked))
        assert answers == [[2 * item for item in items] for items in asked]
        assert source.fetches == [[1, 2, 3, 4], [5, 6], [7, 8, 9, 10, 11, 12], [13]]

    asyncio.run(path())


def test_a_failure_is_told_to_its_own_callers_only() -> None:
    async def path() -> None:
        source = Source()
        coalescer = Coalescer(source.fetch, max_items=2)
        source.failure = ValueError("lost")
        failing = [asyncio.create_task(coalescer.ask([i])) for i in (1, 2)]
        for outcome in await asyncio.gather(*failing, return_exceptions=True):
            assert isinstance(outcome, ValueError)
        source.failure = None
        assert await coalescer.ask([3]) == [6]

    asyncio.run(path())


def test_answers_that_do_not_match_the_questions_are_a_bug_and_strand_nobody() -> None:
    async def path() -> None:
        async def short(items: list[int]) -> list[int]:
            return items[1:]

        coalescer = Coalescer(short, max_items=10)
        with pytest.raises(RuntimeError, match="This is a bug"):
            await coalescer.ask([1, 2])

    asyncio.run(path())


def test_a_caller_that_leaves_takes_no_answer_from_the_others() -> None:
    async def path() -> None:
        source = Source()
        source.gate = asyncio.Event()
        coalescer = Coalescer(source.fetch, max_items=100)
        tasks = [asyncio.create_task(coalescer.ask([i])) for i in range(4)]
        await source.fetching.wait()
        late = asyncio.create_task(coalescer.ask([9]))
        await asyncio.sleep(0)
        tasks[1].cancel()  # during its fetch
        late.cancel()  # before its fetch
        source.gate.set()
        outcomes = await asyncio.gather(*tasks, late, return_exceptions=True)
        assert [outcomes[i] for i in (0, 2, 3)] == [[0], [4], [6]]
        assert isinstance(outcomes[1], asyncio.CancelledError)
        assert isinstance(outcomes[4], asyncio.CancelledError)
        assert await coalescer.ask([5]) == [10]
        assert source.fetches == [[0, 1, 2, 3], [5]], "nobody waited for 9"

    asyncio.run(path())
