"""The engine behind sockets: any number of workers, of ours or stock vLLM, behaving as one.

What it promises is what the worker in this process promises: every accepted text gets exactly one answer, and a text
that fails, fails alone. A worker serves only after it has scored the golden texts as recorded; one that fails is taken
out at once, and what it held is sent to another. The policy is in `balance`, `waiting` and `wire`; here are the thread,
its event loop and the book-keeping.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import uvloop

from service.errors import EngineError, MetarewardError, Overloaded, Unavailable
from service.observability.metrics import Metrics
from service.worker import balance
from service.worker.admission import Admission
from service.worker.connection import Connection
from service.worker.fleet import Fleet
from service.worker.messages import BaseRewards
from service.worker.remote_parts import Flight, RemoteJob, RemoteText, RemoteWorker
from service.worker.selfcheck import GoldenRecord, Verdict
from service.worker.waiting import Waiting
from service.worker.wire import OutOfTime, TextsRefused, WorkerBusy, WorkerFailed

_log = logging.getLogger(__name__)

# Two workers that refuse a text alone are no accident; nor is one whose senders lose four workers.
_MAX_REFUSALS: Final = 2
_MAX_LOSSES: Final = 4
# A worker that says that time is up may be so far ahead of this clock.
_CLOCKS_DIFFER_S: Final = 0.05


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
        """
        self._b_K = np.asarray(b_K, dtype=np.float64)
        self._max_batch_tokens = max_batch_tokens
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._admission = Admission(max_queue_tokens * len(connect), max_queue_wait_s)
        self._fleet = Fleet(
            connect,
            golden,
            metrics,
            window_tokens=balance.window_tokens(max_batch_tokens),
            lost=self._lose,
            gained=self._pump,
        )
        self._lock = threading.Condition()  # guards _tokens, _large, _accepting and the hand-over to the loop
        self._tokens = 0
        self._large: set[RemoteJob] = set()  # the jobs that hold more than a batch
        self._accepting = True
        # What follows belongs to the loop.
        self._loop = uvloop.new_event_loop()
        self._waiting = Waiting(max_batch_tokens)
        self._open: set[RemoteText] = set()
        self._tasks: set[asyncio.Task[None]] = set()
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
            self._loop.call_soon_threadsafe(self._take, accepted)
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
            raise self._nobody()
        pause_s = min(load.paused_until for load in loads) - time.monotonic()
        if pause_s > 0:
            raise _busy(pause_s)
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

    def _nobody(self) -> Unavailable:
        return Unavailable("no worker of the engine answers", max(1.0, self._fleet.next_attempt_s()))

    def _note_departure(self, answer: Future[BaseRewards], text: RemoteText) -> None:
        if answer.cancelled():
            with self._lock:
                if not self._loop.is_closed():
                    self._loop.call_soon_threadsafe(self._forget, text)

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
            for text in list(self._open):
                self._settle(text, Unavailable("the engine stopped before it could answer this text"))
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

    def _take(self, texts: list[RemoteText]) -> None:
        if not texts:
            return
        self._open.update(texts)
        left_s = texts[0].deadline - time.monotonic()
        if left_s <= 0:
            self._expire(texts)
            return
        if len(self._fleet.workers) > 1:
            for text in texts:
                text.blocks = balance.prefix_blocks(text.token_ids, text.scope)
        self._waiting.add(texts)
        deadline = self._loop.call_later(left_s, self._expire, texts)
        left = len(texts)

        def settled() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                deadline.cancel()

        for text in texts:
            text.on_settled = settled
        self._pump()

    def _pump(self) -> None:
        """Send what waits to who has room."""
        while (head := self._waiting.head()) is not None:
            now = time.monotonic()
            up = self._fleet.up()
            awake = [worker for worker in up if worker.load.paused_until <= now]
            if not awake:
                pause_s = min((worker.load.paused_until - now for worker in up), default=0.0)
                error = _busy(pause_s) if up else self._nobody()
                for text in self._waiting.take_all():
                    self._settle(text, error)
                return
            # A worker that refused it is not asked again because the others are full: it may be the one at fault.
            fit = [worker for worker in awake if worker.name not in head.avoid] or awake
            free = [worker for worker in fit if worker.load.has_room()]
            if not free:
                return  # an answer will come, and come back here
            name = balance.least_loaded(((worker.name, worker.load) for worker in free), head.blocks)
            in_flight = sum(worker.load.tokens for worker in self._fleet.workers.values())
            limit = balance.share_tokens(self._tokens - in_flight, len(free), self._max_batch_tokens)
            self._launch(self._fleet.workers[name], self._waiting.take(limit))

    def _launch(self, worker: RemoteWorker, texts: list[RemoteText]) -> None:
        flight = Flight(worker, texts, time.monotonic())
        for text in texts:
            text.flight = flight
            worker.load.recent.note(text.blocks)
        worker.flights.add(flight)
        worker.load.sent(flight.tokens, flight.sent_at)
        self._fleet.show(worker)
        flight.task = self._spawn(self._fly(flight))
        # Not in a `finally` of its own: a task that is cancelled before its first step never comes to that.
        flight.task.add_done_callback(lambda _: self._land(flight))

    async def _fly(self, flight: Flight) -> None:
        worker = flight.worker
        try:
            rewards_BK = await worker.ask(
                [text.token_ids for text in flight.texts],
                scope=flight.texts[0].scope,
                timeout_s=flight.deadline - time.monotonic(),
            )
            flight.answered = True
            rewards_BK += self._b_K
            for text, rewards_K in zip(flight.texts, rewards_BK, strict=True):
                self._settle(text, rewards_K.copy())
        except WorkerBusy as busy:
            worker.load.paused_until = time.monotonic() + busy.retry_after_s
            self._send_again(flight.texts)
        except TextsRefused as refused:
            if refused.suspicious:
                self._fleet.suspect(worker)
            self._part(flight, refused)
        except WorkerFailed as failure:
            if isinstance(failure, OutOfTime) and flight.deadline - time.monotonic() <= _CLOCKS_DIFFER_S:
                for text in flight.texts:  # the worker did as it was told
                    self._settle(text, _late())
                return
            for text in flight.texts:
                text.losses += failure.reached
            self._send_again(flight.texts)
            if flight.sent_at >= worker.up_since:  # else it has proved itself since
                self._fleet.fail(worker, failure)
        except Exception:
            _log.exception("an answer could not be read. This is a bug")
            for text in flight.texts:
                self._settle(text, EngineError("the engine failed on this text"))

    def _land(self, flight: Flight) -> None:
        """A request has ended, in whatever way."""
        worker = flight.worker
        worker.flights.discard(flight)
        worker.load.returned(flight.tokens, time.monotonic(), answered=flight.answered)
        if flight.answered and worker.connection is not None:
            worker.load.told(worker.connection.queued_tokens)
        self._fleet.show(worker)
        self._pump()

    def _part(self, flight: Flight, refused: TextsRefused) -> None:
        """A text of a request is at fault. The one that is named goes on alone; if none is, each half goes alone.

        So the faulty one of n is found in about 2 log n requests, and the others are answered on the way.
        """
        texts = flight.texts
        faulty = [text for i, text in enumerate(texts) if i in refused.named] or (texts if len(texts) == 1 else [])
        for text in faulty:
            text.refusals += 1
            text.part = object()
            text.avoid.add(flight.worker.name)
            if text.refusals >= _MAX_REFUSALS:
                self._settle(text, EngineError(f"the engine failed on this text ({refused.message})"))
        if faulty:
            others = [text for i, text in enumerate(texts) if i not in refused.named] if len(texts) > 1 else []
            self._send_again([*others, *faulty])
            return
        middle = len(texts) // 2
        for half in (texts[middle:], texts[:middle]):
            part = object()
            for text in half:
                text.part = part
                text.avoid.add(flight.worker.name)  # it may be the one at fault
            self._send_again(half)

    def _send_again(self, texts: Sequence[RemoteText]) -> None:
        """Put texts that are not answered before all others."""
        again = [text for text in texts if not text.settled]
        parts: dict[object, list[RemoteText]] = {}
        for text in again:
            text.flight = None
            if text.losses >= _MAX_LOSSES:
                self._settle(text, EngineError("every worker that was sent this text was lost"))
                continue
            if text.losses > 1:
                text.part = text  # where it is this one that takes workers down, it takes no other text along
            parts.setdefault(text.part, []).append(text)
        for part in reversed(parts.values()):
            self._waiting.put_back(part)
        self._metrics.engine_retries.inc(len(again))

    def _lose(self, worker: RemoteWorker, hangs: bool) -> None:
        """A worker was taken out. One that only refuses what is new may still answer what it holds: it drains, say."""
        worker.load.recent.forget()
        if hangs:
            for flight in list(worker.flights):
                if flight.task is not asyncio.current_task():
                    self._send_again(flight.texts)
                    flight.cancel()
        self._pump()

    def _expire(self, texts: list[RemoteText]) -> None:
        """Time is up for those of `texts` that have no answer."""
        now = time.monotonic()
        flights: set[Flight] = set()
        for text in texts:
            if not text.settled:
                if text.flight is not None:
                    flights.add(text.flight)
                self._settle(text, _late())
        for flight in flights:
            # One that had hardly begun, because it waited for others before, says nothing of its worker.
            if now - flight.sent_at >= self._timeout_s / 2:
                self._fleet.fail(flight.worker, WorkerFailed("timeout", "it does not answer in time", hangs=True))
            if flight.is_settled():
                flight.cancel()

    def _forget(self, text: RemoteText) -> None:
        """The caller has left."""
        if not text.settled:
            flight = text.flight
            self._settle(text, Unavailable("the caller has left"))
            if flight is not None and flight.is_settled():
                flight.cancel()

    def _settle(self, text: RemoteText, answer: BaseRewards | MetarewardError) -> None:
        """Give a text its one answer."""
        if text.settled:
            return
        text.settled = True
        self._open.discard(text)
        with self._lock:
            self._tokens -= text.tokens
            if text.job is not None:
                text.job.tokens -= text.tokens
                if text.job.tokens <= 0:
                    self._large.discard(text.job)
            if self._tokens <= 0:
                self._lock.notify_all()
        text.on_settled()
        if text.answer.set_running_or_notify_cancel():
            if isinstance(answer, MetarewardError):
                text.answer.set_exception(answer)
            else:
                text.answer.set_result(answer)


def _late() -> Unavailable:
    return Unavailable("the engine did not answer in time")


def _busy(pause_s: float) -> Overloaded:
    return Overloaded("the engine has as much work as it may take on; try again later", max(1.0, pause_s))
