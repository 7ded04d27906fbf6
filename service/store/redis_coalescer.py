"""One round trip for the questions of many callers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Coalescer(Generic[Item, Answer]):
    """Joins what callers ask in one turn of the event loop, or while a fetch is under way, into one fetch.

    A client library's work for a round trip is several times that for one more key in it, so the busier the server,
    the cheaper a question. Lives on one event loop.
    """

    def __init__(self, fetch: Callable[[list[Item]], Awaitable[list[Answer]]], *, max_items: int) -> None:
        """A coalescer.

        Args:
            fetch: Called with items of one or more callers, one call at a time; gives an answer each, in order. What
                it raises, every one of those callers gets.
            max_items: Whole callers are added to a fetch up to this many items; one that asks for more goes alone.
        """
        self._fetch = fetch
        self._max_items = max_items
        self._waiting: deque[tuple[Sequence[Item], asyncio.Future[list[Answer]]]] = deque()
        self._fetching: asyncio.Task[None] | None = None

    async def ask(self, items: Sequence[Item]) -> list[Answer]:
        """Answers to `items`, in order."""
        if not items:
            return []
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Answer]] = loop.create_future()
        self._waiting.append((items, future))
        if self._fetching is None:
            # The task begins after those that are ready to run now: they may ask as well.
            self._fetching = loop.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._fetch_some()
        finally:
            self._fetching = None
            # Only where this task was cancelled: nobody is left to answer.
            while self._waiting:
                self._waiting.popleft()[1].cancel()

    async def _fetch_some(self) -> None:
        callers: list[tuple[Sequence[Item], asyncio.Future[list[Answer]]]] = []
        items: list[Item] = []
        while self._waiting and (not items or len(items) + len(self._waiting[0][0]) <= self._max_items):
            caller = self._waiting.popleft()
            if not caller[1].done():  # one that has left wants no answer
                callers.append(caller)
                items.extend(caller[0])
        if not items:
            return
        try:
            answers = await self._fetch(items)
            if len(answers) != len(items):
                raise RuntimeError(f"{len(answers)} answers to {len(items)} questions. This is a bug.")
        except Exception as error:  # each caller's to handle
            for _, future in callers:
                if not future.done():
                    future.set_exception(error)
            return
        except BaseException:
            for _, future in callers:
                future.cancel()
            raise
        offset = 0
        for asked, future in callers:
            if not future.done():
                future.set_result(answers[offset : offset + len(asked)])
            offset += len(asked)
