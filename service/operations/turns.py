"""Who writes a user next: one at a time in this process, in the order of their coming."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from typing import Final

from service.errors import Overloaded

# Writers of one user that may wait. Each of them is a request that is being worked on, so others must have room.
MAX_WAITING: Final = 256


class Turns:
    """A queue for each key. Lives on one event loop.

    Two writers of one user would wait for each other at the user's row, each in a thread of the store; with enough of
    them no thread is left for anybody else. Here they wait without one. Between replicas the row itself decides.
    """

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        # A key is here while somebody has its turn.
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        """Keys that somebody has the turn of."""
        return len(self._waiting)

    async def take(self, key: Hashable) -> None:
        """Wait for the turn; `end` gives it back. Whoever is cancelled while waiting has none, and holds up nobody.

        Raises:
            Overloaded: Too many wait already.
        """
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = deque()
            return
        if len(waiting) >= self._max_waiting:
            raise Overloaded("Too many changes of this user wait already. Send several items in one call.")
        turn = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it came in the moment of leaving
                self.end(key)
            elif turn in waiting:  # or `end` has passed it over already
                waiting.remove(turn)
            raise

    def end(self, key: Hashable) -> None:
        """Give the turn to who waits longest."""
        waiting = self._waiting[key]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._waiting[key]
