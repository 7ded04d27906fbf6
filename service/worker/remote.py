"""The engine behind sockets: any number of workers, of ours or stock vLLM, behaving as one.

What it promises is what the worker in this process promises: every accepted text gets exactly one answer, and a text
that fails, fails alone. A worker serves only after it has scored the golden texts as recorded; one that fails is taken
out at once, and what it held is sent to another. What is sent where is in `dispatch`; here are the
thread, its event loop and the door.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt
import uvloop

from service.errors import Unavailable
from service.observability.metrics import Metrics
from service.worker import balance
from service.worker.admission import Admission
from service.worker.connection import Connection
from service.worker.dispatch import Dispatch, busy, nobody
from service.worker.fleet import Fleet
from service.worker.messages import BaseRewards
from service.worker.remote_parts import RemoteJob, RemoteText
from service.worker.selfcheck import GoldenRecord, Verdict

_log = logging.getLogger(__name__)


class RemoteEngine:
    """An `Engine` over remote workers. Any number of threads may submit."""

    def __init__(
        self,
        connect: Mapping[str, Callable[[], Connection]],
        golden: GoldenRecord,
        b_K: npt.NDArray[np.floating],
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        max_queue_wait_s: float,
        timeout_s: float,
        metrics: Metrics,
        further: bool = False,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            connect: Makes the connection to each worker, by name; called on the engine's own event loop.
            golden: What a worker must answer before it serves.
            b_K: What the workers' A h lacks.
            max_batch_tokens: What a worker computes at a time, and the most in one request.
            max_queue_tokens: The most tokens that may wait, for each worker.
            max_queue_wait_s: The longest wait, as estimated from recent speed.
            timeout_s: The longest time to an answer.
            metrics: Where to count.
            further: Whether another engine of this process is the one that `dependency_up` tells of.
        """
        self._max_batch_tokens = max_batch_tokens
        self._timeout_s = timeout_s
        self._admission = Admission(max_queue_tokens * len(connect), max_queue_wait_s)
        self._fleet = Fleet(
            connect,
            golden,
            metrics,
            window_tokens=balance.window_tokens(max_batch_tokens),
            lost=lambda worker, hangs: self._dispatch.lose(worker, hangs),
            gained=lambda: self._dispatch.pump(),
            further=further,
        )
        self._lock = threading.Condition()  # guards _tokens, _large, _accepting and the hand-over to the loop
        self._tokens = 0
        self._large: set[RemoteJob] = set()  # the jobs that hold more than a batch
        self._accepting = True
        # What follows belongs to the loop.
        self._loop = uvloop.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._dispatch = Dispatch(
            self._fleet,
            b_K,
            loop=self._loop,
            spawn=self._spawn,
            unanswered=lambda: self._tokens,
            settled=self._count_settled,
            max_batch_tokens=max_batch_tokens,
            timeout_s=timeout_s,
            metrics=metrics,
        )
        self._thread = threading.Thread(target=self._run, name="metareward-engine", daemon=True)

    @property
    def shared(self) -> bool:
        """Other replicas depend on the same workers: without them this process is degraded, not unready.

        A thread that died is this process's own.
        """
        return self._thread.is_alive()

    @property
    def healthy(self) -> bool:
        """Whether any worker takes texts."""
        return self._thread.is_alive() and self._accepting and bool(self._fleet.up())

    @property
    def queued_tokens(self) -> int:
        """Tokens accepted and not yet answered."""
        return self._tokens

    def start(self, patience_s: float) -> None:
        """Start, and wait until every worker was tried once, `patience_s` at most; they may as well be down."""
        self._thread.start()
        self._fleet.tried.wait(patience_s)

    def submit(
        self, texts: Sequence[Sequence[int]], *, scope: bytes = b"", deadline: float | None = None
    ) -> list[Future[BaseRewards]]:
        """Send texts (token ids) to workers: all of them, or none.

        Cancelling a future takes its text back; a request to a worker ends when all its texts were taken back.

        Args:
            texts: One job: jobs take turns.
            scope: Whose texts they are. Workers share neither computation nor caches between scopes.
            deadline: On the monotonic clock, and no later than `timeout_s` from now: workers are told.

        Returns:
            For each text a future of its base rewards [K] float64. It may end in `EngineError` (two workers failed on
            this text), `Overloaded` (no worker has time for it) or `Unavailable` (none is left, or none was in time).

        Raises:
            Overloaded: There is too much to do already; says when to come back.
            Unavailable: No worker is up, or the engine is stopping.
        """
        tokens = sum(map(len, texts))
        self.check_room(tokens)
        latest = time.monotonic() + self._timeout_s
        latest = latest if deadline is None else min(latest, deadline)
        job = RemoteJob(tokens)
        accepted = [RemoteText(token_ids, scope, latest, job) for token_ids in texts]
        for text in accepted:
            text.answer.add_done_callback(lambda answer, text=text: self._note_departure(answer, text))  # type: ignore[misc]
        with self._lock:
            self._require_room(tokens)
            self._tokens += tokens
            if tokens > self._max_batch_tokens:
                self._large.add(job)
            self._loop.call_soon_threadsafe(self._dispatch.take, accepted)
        return [text.answer for text in accepted]

    def check_room(self, tokens: int, *, scope: bytes = b"") -> None:
        """Refuse early what `submit` would refuse now; `tokens` may be a lower bound of what is to come.

        Raises:
            Overloaded, Unavailable: As `submit` does.
        """
        with self._lock:
            self._require_room(tokens)

    def self_check(self, timeout_s: float) -> Future[list[Verdict]]:
        """Let every worker score the golden texts; see `Fleet.check`.

        Raises:
            Unavailable: The engine is stopping.
        """
        verdicts: Future[list[Verdict]] = Future()
        verdicts.set_running_or_notify_cancel()

        async def check() -> None:
            try:
                verdicts.set_result(await self._fleet.check(timeout_s))
            except BaseException as error:
                stopped = Unavailable("the engine stopped before it was checked")
                verdicts.set_exception(stopped if isinstance(error, asyncio.CancelledError) else error)
                raise

        with self._lock:
            if not self._accepting:
                raise Unavailable("the engine is stopping")
            self._loop.call_soon_threadsafe(lambda: self._spawn(check()))
        return verdicts

    def close(self, timeout_s: float) -> None:
        """Take no more work, wait `timeout_s` for what was accepted, and end the thread."""
        with self._lock:
            self._accepting = False
            self._lock.wait_for(lambda: self._tokens <= 0 or not self._thread.is_alive(), timeout_s)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout_s)

    def _require_room(self, tokens: int) -> None:
        if not self._accepting:
            raise Unavailable("the engine is stopping")
        loads = [worker.load for worker in self._fleet.up()]
        if not loads or not self._thread.is_alive():
            raise nobody(self._fleet)
        pause_s = min(load.paused_until for load in loads) - time.monotonic()
        if pause_s > 0:
            raise busy(pause_s)
        speeds = [speed for load in loads if (speed := load.speed.tokens_per_s) is not None]
        # The speed of a worker that has done nothing yet is taken for that of the others.
        speed = sum(speeds) * len(loads) / len(speeds) if speeds else None
        ahead = self._tokens
        if self._admission.refusal(tokens, waiting=ahead, ahead=ahead, speed=speed) is None:
            return
        # Jobs take turns: one that has more than its turns and what the workers hold does not have others refused.
        turns = tokens + self._max_batch_tokens + sum(load.window_tokens for load in loads)
        ahead -= sum(job.tokens - turns for job in self._large if job.tokens > turns)
        refusal = self._admission.refusal(tokens, waiting=ahead, ahead=ahead, speed=speed)
        if refusal is not None:
            raise refusal

    def _count_settled(self, text: RemoteText) -> None:
        with self._lock:
            self._tokens -= text.tokens
            if text.job is not None:
                text.job.tokens -= text.tokens
                if text.job.tokens <= 0:
                    self._large.discard(text.job)
            if self._tokens <= 0:
                self._lock.notify_all()

    def _note_departure(self, answer: Future[BaseRewards], text: RemoteText) -> None:
        if answer.cancelled():
            with self._lock:
                if not self._loop.is_closed():
                    self._loop.call_soon_threadsafe(self._dispatch.forget, text)

    # What follows runs on the engine's thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            for worker in self._fleet.workers.values():
                self._spawn(self._fleet.watch(worker))
            self._loop.run_forever()
        except BaseException:
            _log.critical("the remote engine's thread dies; everything that waits is refused", exc_info=True)
        finally:
            with self._lock:
                self._accepting = False
            for worker in self._fleet.workers.values():
                worker.load.up = False
            self._loop.run_until_complete(self._end_tasks())
            self._dispatch.refuse_all(Unavailable("the engine stopped before it could answer this text"))
            with self._lock:
                self._loop.close()

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
