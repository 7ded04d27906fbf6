"""One computation for everybody who asks for the same text at the same time."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Result = TypeVar("Result")


class _Flight(Generic[Result]):
    __slots__ = ("future", "waiters")

    def __init__(self, future: asyncio.Future[Result]) -> None:
        self.future = future
        self.waiters = 0


class SingleFlight(Generic[Result]):
    """Joins callers who ask for one key while it is being computed. Lives on one event loop.

    A caller that leaves does not take the answer from the others; when the last one leaves, the work is cancelled.
    """

    def __init__(self) -> None:
        self._flights: dict[bytes, _Flight[Result]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def run(
        self,
        keys: Sequence[bytes],
        submit: Callable[[Sequence[int]], Sequence[Future[Result]]],
        landed: Callable[[int, Result], None],
    ) -> list[Result]:
        """Results for `keys`, in order; the first failure ends it, and what nobody else waits for is cancelled.

        Args:
            keys: What to compute; may repeat.
            submit: Called at most once, with the indices of the keys that nobody computes yet; gives a future each,
                or raises, and then nothing was started.
            landed: Called with an index given to `submit` and its result, in the same step that ends the flight:
                whoever comes later finds what it remembers, and nobody falls between the two.
        """
        flights = self._join(keys, submit, landed)
        try:
            # Shielded, because cancelling this caller must not cancel a flight that others share.
            return list(await asyncio.gather(*(asyncio.shield(flight.future) for flight in flights)))
        finally:
            self._leave(keys, flights)

    async def outcomes(
        self,
        keys: Sequence[bytes],
        submit: Callable[[Sequence[int]], Sequence[Future[Result]]],
        landed: Callable[[int, Result], None],
    ) -> list[Result | BaseException]:
        """As `run`, but every key is waited for, and what it ended in comes back."""
        flights = self._join(keys, submit, landed)
        try:
            shielded = [asyncio.shield(flight.future) for flight in flights]
            return list(await asyncio.gather(*shielded, return_exceptions=True))
        finally:
            self._leave(keys, flights)

    def _join(
        self,
        keys: Sequence[bytes],
        submit: Callable[[Sequence[int]], Sequence[Future[Result]]],
        landed: Callable[[int, Result], None],
    ) -> list[_Flight[Result]]:
        first: dict[bytes, int] = {}
        for index, key in enumerate(keys):
            if key not in self._flights and key not in first:
                first[key] = index
        if first:
            for (key, index), future in zip(first.items(), submit(list(first.values())), strict=True):
                self._start(key, future, functools.partial(landed, index))
        flights = [self._flights[key] for key in keys]
        for flight in flights:
            flight.waiters += 1
        return flights

    def _leave(self, keys: Sequence[bytes], flights: Sequence[_Flight[Result]]) -> None:
        for key, flight in zip(keys, flights, strict=True):
            flight.waiters -= 1
            if flight.waiters == 0:
                self._forget(key, flight)  # before cancelling: nobody may join a flight that is being cancelled
                flight.future.cancel()

    def _start(self, key: bytes, future: Future[Result], landed: Callable[[Result], None]) -> None:
        flight = _Flight(asyncio.wrap_future(future))
        self._flights[key] = flight

        def land(done: asyncio.Future[Result]) -> None:
            self._forget(key, flight)
            # Asking for the exception also marks it as seen: a failure whose callers have left is not lost.
            if not done.cancelled() and done.exception() is None:
                landed(done.result())

        flight.future.add_done_callback(land)

    def _forget(self, key: bytes, flight: _Flight[Result]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
