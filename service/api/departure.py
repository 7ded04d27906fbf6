"""Noticing that a client has left, so that nobody's work does not reach the device."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# Most requests are answered sooner, and cost no second task then.
_WATCH_AFTER_S: Final = 0.05


class Departure:
    """Cancels the current task when the client behind `receive` leaves between its request and its answer."""

    def __init__(self, receive: Receive) -> None:
        self.noticed = False
        self._receive = receive
        self._request = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Begin; the request's whole body has been received, so whatever comes next is the client's departure."""
        self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._start)

    def end(self) -> None:
        """Cancel nothing from now on: the answer is on its way."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _start(self) -> None:
        self._watcher = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        event = await self._receive()
        if event["type"] == "http.disconnect" and self._request is not None:
            self.noticed = True
            self._request.cancel()
