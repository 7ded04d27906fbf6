"""Work in a thread that ends in a commit, of which others must learn though its caller leave meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TypeVar

Result = TypeVar("Result")


async def commit(executor: Executor, work: Callable[[], Result], landed: Callable[[Result], None]) -> Result:
    """Run `work` in a thread of `executor`; then, on this event loop, `landed` with its result.

    A caller that is cancelled drops work that waits for a thread. Work that runs goes on to its end, and `landed` is
    called all the same.
    """
    loop = asyncio.get_running_loop()
    running = executor.submit(work)

    def land(done: Future[Result]) -> None:
        if not done.cancelled() and done.exception() is None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who would learn
                loop.call_soon_threadsafe(landed, done.result())

    running.add_done_callback(land)
    return await asyncio.wrap_future(running)
