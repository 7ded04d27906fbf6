"""Writers of one user go one by one, in the order of their coming, whoever leaves meanwhile."""

from __future__ import annotations

import asyncio
import random

import pytest

from service.errors import Overloaded
from service.operations.turns import Turns


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_turns_come_in_order_and_keys_do_not_wait_for_each_other() -> None:
    turns, order = Turns(), []

    async def write(name: int, key: str) -> None:
        await turns.take(key)
        order.append((key, name))
        await settle()
        turns.end(key)

    async def path() -> None:
        await turns.take("held")
        waiting = [asyncio.create_task(write(name, "held")) for name in range(5)]
        await settle()
        await write(0, "free")
        assert order == [("free", 0)]
        turns.end("held")
        await asyncio.gather(*waiting)
        assert order[1:] == [("held", name) for name in range(5)]
        assert len(turns) == 0

    asyncio.run(path())


def test_who_leaves_gives_the_turn_up_even_in_the_moment_it_comes() -> None:
    turns, done = Turns(), []

    async def write(name: str) -> None:
        await turns.take("ada")
        done.append(name)
        turns.end("ada")

    async def path() -> None:
        await turns.take("ada")
        leaves, gets, stays = (asyncio.create_task(write(name)) for name in ("leaves", "gets", "stays"))
        await settle()
        leaves.cancel()
        await settle()
        turns.end("ada")  # the turn is now that of `gets`, which has not run yet
        gets.cancel()
        await stays
        assert done == ["stays"]
        assert len(turns) == 0

    asyncio.run(path())


def test_too_many_waiting_are_refused_and_nobody_loses_a_place() -> None:
    turns = Turns(max_waiting=2)

    async def path() -> None:
        await turns.take("ada")
        waiting = [asyncio.create_task(turns.take("ada")) for _ in range(2)]
        await settle()
        with pytest.raises(Overloaded):
            await turns.take("ada")
        await turns.take("bob")
        turns.end("ada")
        await waiting[0]
        turns.end("ada")
        await waiting[1]
        turns.end("ada")
        turns.end("bob")
        assert len(turns) == 0

    asyncio.run(path())


@pytest.mark.parametrize("seed", range(20))
def test_never_two_at_once_and_none_forgotten_whatever_the_order_of_events(seed: int) -> None:
    generator = random.Random(seed)
    turns, inside, finished = Turns(), 0, 0

    async def write() -> None:
        nonlocal inside, finished
        await turns.take("ada")
        try:
            inside += 1
            assert inside == 1
            for _ in range(generator.randrange(3)):
                await asyncio.sleep(0)
            inside -= 1
            finished += 1
        except asyncio.CancelledError:
            inside -= 1
            raise
        finally:
            turns.end("ada")

    async def path() -> None:
        tasks = []
        for _ in range(60):
            tasks.append(asyncio.create_task(write()))
            if generator.random() < 0.5:
                await asyncio.sleep(0)
            if generator.random() < 0.3:
                generator.choice(tasks).cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends)
        assert finished == sum(end is None for end in ends) > 0
        assert len(turns) == 0

    asyncio.run(path())
