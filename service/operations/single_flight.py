"""One computation for everybody who asks for the same text at the same time."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from service.errors import Unavailable

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
        deadline: float | None = None,
    ) -> list[Result]:
        """Results for `keys`, in order; the first failure ends it, and what nobody else waits for is cancelled.

        Args:
            keys: What to compute; may repeat.
            submit: Called with the indices of the keys that nobody computes yet; gives a future each, or raises, and
                then nothing was started. Once, unless a flight of another caller ran out of that one's time.
            landed: Called with an index given to `submit` and its result, in the same step that ends the flight:
                whoever comes later finds what it remembers, and nobody falls between the two.
            deadline: How long this caller has, on the monotonic clock; None for any time.
        """
        flights, joined = self._join(keys, submit, landed)
        # Shielded, because cancelling this caller must not cancel a flight that others share.
        shielded = [asyncio.shield(flight.future) for flight in flights]
        try:
            try:
                return list(await asyncio.gather(*shielded))
            except Unavailable:
                if not joined:
                    raise
            ended = await asyncio.gather(*shielded, return_exceptions=True)
            await self._once_more(keys, ended, joined, submit, landed, deadline)
            results: list[Result] = []
            for result in ended:
                if isinstance(result, BaseException):
                    raise result
                results.append(result)
            return results
        finally:
            self._leave(keys, flights)

    async def outcomes(
        self,
        keys: Sequence[bytes],
        submit: Callable[[Sequence[int]], Sequence[Future[Result]]],
        landed: Callable[[int, Result], None],
        deadline: float | None = None,
    ) -> list[Result | BaseException]:
        """As `run`, but every key is waited for, and what it ended in comes back."""
        flights, joined = self._join(keys, submit, landed)
        shielded = [asyncio.shield(flight.future) for flight in flights]
        try:
            ended = await asyncio.gather(*shielded, return_exceptions=True)
            await self._once_more(keys, ended, joined, submit, landed, deadline)
            return list(ended)
        finally:
            self._leave(keys, flights)

    async def _once_more(
        self,
        keys: Sequence[bytes],
        ended: list[Result | BaseException],
        joined: Sequence[int],
        submit: Callable[[Sequence[int]], Sequence[Future[Result]]],
        landed: Callable[[int, Result], None],
        deadline: float | None,
    ) -> None:
        """Ask again, in place, for what other callers asked first: they may have had less time than this one has."""
        late = [i for i in joined if isinstance(ended[i], Unavailable)]
        if not late or (deadline is not None and time.monotonic() >= deadline):
            return
        again = await self.outcomes(
            [keys[i] for i in late],
            lambda indices: submit([late[i] for i in indices]),
            lambda index, result: landed(late[index], result),
            deadline,
        )
        for i, result in zip(late, again, strict=True):
            ended[i] = result

    def _join(
        self,
        keys: Sequence[bytes],
        submit: Callable[[Sequence[int]], Sequence[Future[Result]]],
        landed: Callable[[int, Result], None],
    ) -> tuple[list[_Flight[Result]], list[int]]:
        """The flights of `keys`, and the indices of those that another caller started."""
        first: dict[bytes, int] = {}
        for index, key in enumerate(keys):
            if key not in self._flights and key not in first:
                first[key] = index
        joined = [index for index, key in enumerate(keys) if key not in first]
        if first:
            for (key, index), future in zip(first.items(), submit(list(first.values())), strict=True):
                self._start(key, future, functools.partial(landed, index))
        flights = [self._flights[key] for key in keys]
        for flight in flights:
            flight.waiters += 1
        return flights, joined

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
