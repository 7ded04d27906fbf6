"""The thin loop that drives a call's attempts, on asyncio."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from metareward_client._async_rewards import Rewards
from metareward_client._attempts import Attempts, Broken, Done, Send
from metareward_client._call import Call
from metareward_client._config import Config

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


class Loop:
    """What one event loop has of a client."""

    def __init__(self, config: Config) -> None:
        import httpx

        from metareward_client._http import client_options

        transport = config.transport
        if transport is not None and not isinstance(transport, httpx.AsyncBaseTransport):
            raise TypeError("transport must be an httpx.AsyncBaseTransport")
        self.config = config
        self.http = httpx.AsyncClient(transport=transport, **client_options(config))
        self.rewards = Rewards(self.run, config.batch_size, config.batch_window_s, config.max_concurrency)

    async def run(self, call: Call[T], until: float) -> T:
        """Answer a call until a time on the monotonic clock.

        Raises:
            MetarewardError: See the tree in `errors`.
        """
        attempts = Attempts(call, until, max_retries=self.config.max_retries)
        while True:
            step = attempts.next(time.monotonic())
            if isinstance(step, Done):
                return step.value
            if isinstance(step, Send):
                await _send(self.http, self.config, call, attempts, step)
            else:
                await asyncio.sleep(step.seconds)

    async def run_all(self, calls: Sequence[Call[T]], until: float) -> list[T]:
        """Answer calls, `max_concurrency` at a time; the first that fails ends the others.

        Raises:
            MetarewardError: What the first failed with.
        """
        free = asyncio.Semaphore(self.config.max_concurrency)

        async def one(call: Call[T]) -> T:
            async with free:
                return await self.run(call, until)

        tasks = [asyncio.ensure_future(one(call)) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Loops:
    """A `Loop` for each event loop: one client serves loops that follow each other, and such beside each other."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._loops: dict[asyncio.AbstractEventLoop, Loop] = {}
        self._closed = False

    def get(self) -> Loop:
        """That of the running loop.

        Raises:
            RuntimeError: The client is closed.
        """
        running = asyncio.get_running_loop()
        with self._lock:
            if self._closed:
                raise RuntimeError("this client is closed")
            loop = self._loops.get(running)
            if loop is None:
                self._loops = {each: of_it for each, of_it in self._loops.items() if not each.is_closed()}
                loop = self._loops[running] = Loop(self._config)
            return loop

    async def close(self) -> None:
        """Close every connection of the running loop, and forget those of others. Calls that are under way fail."""
        with self._lock:
            self._closed = True
            loops, self._loops = self._loops, {}
        loop = loops.get(asyncio.get_running_loop())
        if loop is not None:
            await loop.http.aclose()


async def _send(client: httpx.AsyncClient, config: Config, call: Call[T], attempts: Attempts[T], step: Send) -> None:
    import httpx

    from metareward_client._http import TimeLeft, answer_of, broken, request_of

    request = request_of(client, config, call, step)
    left: TimeLeft = request.extensions["timeout"]
    try:
        response = await client.send(request, stream=True)
        try:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if left.over:
                    attempts.broke(Broken.OUT_OF_TIME, "")
                    return
        finally:
            await response.aclose()
    except (httpx.TransportError, httpx.DecodingError) as error:
        attempts.broke(*broken(error))
    else:
        attempts.answered(answer_of(response, bytes(body)))
