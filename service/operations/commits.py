"""Work in a thread that ends in a commit, of which others must learn though its caller leave meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future
from typing import TypeVar

from service.operations.turns import Turns

Result = TypeVar("Result")


async def commit(
    executor: Executor,
    work: Callable[[], Result],
    landed: Callable[[Result], None],
    *,
    turns: Turns,
    of: Hashable,
) -> Result:
    """Run `work` in a thread of `executor` when it is its turn; then, on this event loop, `landed` with its result.

    A caller that is cancelled drops work that waits for its turn or for a thread. Work that runs goes on to its end,
    keeps its turn so long, and `landed` is called all the same.

    Args:
        executor: The store's threads.
        work: What commits.
        landed: Called once, if `work` returns.
        turns: Who writes next.
        of: Whose turn: writers of the same thing run one after the other.

    Raises:
        Overloaded: Too many wait for this turn.
    """
    loop = asyncio.get_running_loop()
    await turns.take(of)

    def end(done: Future[Result]) -> None:
        try:
            if not done.cancelled() and done.exception() is None:
                landed(done.result())
        finally:
            turns.end(of)

    def tell(done: Future[Result]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who would learn
            loop.call_soon_threadsafe(end, done)

    try:
        running = executor.submit(work)
    except BaseException:  # the threads have ended
        turns.end(of)
        raise
    running.add_done_callback(tell)
    return await asyncio.wrap_future(running)
