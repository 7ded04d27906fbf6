"""Single scores of concurrent tasks, gathered into requests; one of these for each event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from metareward_client._call import Call
from metareward_client._together import Batch, Wish, take
from metareward_client.answers import Score
from metareward_client.errors import RequestError


class Rewards:
    """Gathers wishes and sends them, as its twin for threads does.

    Args:
        ask: Answers a call until a time.
        batch_size: Most wishes in a request.
        window_s: How long the first one waits for others.
        most_senders: Most requests at a time.
    """

    def __init__(
        self,
        ask: Callable[[Call[list[Score]], float], Awaitable[list[Score]]],
        batch_size: int,
        window_s: float,
        most_senders: int,
    ) -> None:
        self._ask = ask
        self._batch_size = batch_size
        self._window_s = window_s
        self._most_senders = most_senders
        self._wishes: list[Wish] = []
        self._window: asyncio.TimerHandle | None = None
        self._under_way: dict[asyncio.Task[None], Batch] = {}

    async def reward(self, wish_with: Callable[[asyncio.Future[Score]], Wish]) -> Score:
        """Wait for the score of one completion.

        Args:
            wish_with: Makes the wish for what will be waited for.

        Raises:
            MetarewardError: See the tree in `errors`.
        """
        loop = asyncio.get_running_loop()
        promise: asyncio.Future[Score] = loop.create_future()
        wish = wish_with(promise)
        self._wishes.append(wish)
        if len(self._wishes) >= self._batch_size:
            self._send_some()
        elif self._window is None:
            self._window = loop.call_later(self._window_s, self._send_some)
        timer = loop.call_later(max(0.0, wish.until - time.monotonic()), self._late, wish)
        try:
            return await promise
        except asyncio.CancelledError:
            self._leave()
            raise
        finally:
            timer.cancel()

    def _late(self, wish: Wish) -> None:
        wish.late()
        self._leave()

    def _leave(self) -> None:
        """End requests for which nobody waits any more."""
        for task, batch in self._under_way.items():
            if batch.left:
                task.cancel()

    def _send_some(self) -> None:
        if self._window is not None:
            self._window.cancel()
            self._window = None
        while self._wishes and len(self._under_way) < self._most_senders:
            batch = take(self._wishes, self._batch_size)
            task = asyncio.get_running_loop().create_task(self._send(batch))
            self._under_way[task] = batch
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        batch = self._under_way.pop(task)
        if task.cancelled():
            # The loop ends, and with it those who still wait.
            batch.cancel()
        if self._window is None:
            self._send_some()

    async def _send(self, batch: Batch) -> None:
        todo = [batch]
        while todo:
            batch = todo.pop()
            if batch.left:
                continue
            try:
                batch.answered(await self._ask(batch.call(), batch.until))
            except RequestError as error:
                todo += batch.refused(error)
            except Exception as error:
                # Whatever it is, those who wait must hear of it.
                batch.failed(error)
