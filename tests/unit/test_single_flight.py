"""Many callers, one computation; and nobody's leaving takes the answer from the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import pytest

from service.errors import Unavailable
from service.operations.single_flight import SingleFlight


class Desk:
    """Takes work and answers when told to."""

    def __init__(self) -> None:
        self.futures: list[Future[str]] = []
        self.accepted: list[int] = []
        self.results: list[tuple[int, str]] = []

    def submit(self, indices: Sequence[int]) -> list[Future[str]]:
        new: list[Future[str]] = [Future() for _ in indices]
        self.accepted += list(indices)
        self.futures += new
        return new

    def landed(self, index: int, result: str) -> None:
        self.results.append((index, result))


def in_loop(test: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())  # type: ignore[arg-type]

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


@in_loop
async def test_same_key_is_computed_once_for_all_callers() -> None:
    flights, desk = SingleFlight[str](), Desk()
    callers = [asyncio.create_task(flights.run([b"a", b"b", b"a"], desk.submit, desk.landed)) for _ in range(5)]
    await asyncio.sleep(0)
    assert desk.accepted == [0, 1]
    desk.futures[0].set_result("A")
    desk.futures[1].set_result("B")
    assert await asyncio.gather(*callers) == [["A", "B", "A"]] * 5
    assert desk.results == [(0, "A"), (1, "B")]
    await asyncio.sleep(0)
    assert len(flights) == 0


@in_loop
async def test_a_caller_that_leaves_does_not_take_the_answer_along() -> None:
    flights, desk = SingleFlight[str](), Desk()
    leaves, stays = (asyncio.create_task(flights.run([b"a"], desk.submit, desk.landed)) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.sleep(0)
    assert not desk.futures[0].cancelled()
    desk.futures[0].set_result("A")
    assert await stays == ["A"]
    with pytest.raises(asyncio.CancelledError):
        await leaves


@in_loop
async def test_work_is_cancelled_when_the_last_caller_leaves_and_starts_anew_for_the_next() -> None:
    flights, desk = SingleFlight[str](), Desk()
    caller = asyncio.create_task(flights.run([b"a"], desk.submit, desk.landed))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    following = asyncio.create_task(flights.run([b"a"], desk.submit, desk.landed))
    await asyncio.sleep(0)
    assert desk.futures[0].cancelled()
    assert len(desk.futures) == 2
    desk.futures[1].set_result("again")
    assert await following == ["again"]


@in_loop
async def test_a_failure_reaches_every_caller_and_is_not_remembered() -> None:
    flights, desk = SingleFlight[str](), Desk()
    callers = [asyncio.create_task(flights.run([b"a", b"b"], desk.submit, desk.landed)) for _ in range(3)]
    await asyncio.sleep(0)
    desk.futures[0].set_exception(RuntimeError("device"))
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["device"] * 3
    assert desk.futures[1].cancelled(), "what nobody waits for any more is dropped"
    again = asyncio.create_task(flights.run([b"a"], desk.submit, desk.landed))
    await asyncio.sleep(0)
    desk.futures[2].set_result("A")
    assert await again == ["A"]


@in_loop
async def test_refused_work_leaves_nothing_behind() -> None:
    flights = SingleFlight[str]()

    def refuse(indices: Sequence[int]) -> list[Future[str]]:
        raise OverflowError("full")

    with pytest.raises(OverflowError):
        await flights.run([b"a"], refuse, Desk().landed)
    assert len(flights) == 0


@in_loop
async def test_who_has_more_time_than_the_first_caller_had_asks_again_for_what_ran_out_of_it() -> None:
    flights, first, other = SingleFlight[str](), Desk(), Desk()
    short = asyncio.create_task(flights.run([b"a"], first.submit, first.landed))
    await asyncio.sleep(0)
    later = time.monotonic() + 3600
    longer = asyncio.create_task(flights.run([b"b", b"a"], other.submit, other.landed, later))
    all_of = asyncio.create_task(flights.outcomes([b"a"], other.submit, other.landed, later))
    none_left = asyncio.create_task(flights.run([b"a"], other.submit, other.landed, time.monotonic()))
    await asyncio.sleep(0)
    assert (first.accepted, other.accepted) == ([0], [0])
    first.futures[0].set_exception(Unavailable("time was up"))
    other.futures[0].set_result("B")
    for caller in (short, none_left):
        with pytest.raises(Unavailable):
            await caller
    for _ in range(10):
        await asyncio.sleep(0)
    other.futures[1].set_result("A")
    assert await longer == ["B", "A"]
    assert await all_of == ["A"]
    assert len(other.futures) == 2
    await asyncio.sleep(0)
    assert len(flights) == 0
