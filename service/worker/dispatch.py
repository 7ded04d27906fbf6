"""What goes to which remote worker, and what becomes of it: on the remote engine's event loop.

Every text that is taken is settled exactly once. The policy is in `balance`, `waiting` and `wire`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.errors import EngineError, MetarewardError, Overloaded, Unavailable
from service.observability.metrics import Metrics
from service.worker import balance
from service.worker.fleet import Fleet
from service.worker.messages import BaseRewards
from service.worker.remote_parts import Flight, RemoteText, RemoteWorker
from service.worker.waiting import Waiting
from service.worker.wire import OutOfTime, TextsRefused, WorkerBusy, WorkerFailed

_log = logging.getLogger(__name__)

# Two workers that refuse a text alone are no accident; nor is one whose senders lose four workers.
_MAX_REFUSALS: Final = 2
_MAX_LOSSES: Final = 4
# A worker that says that time is up may be so far ahead of this clock.
_CLOCKS_DIFFER_S: Final = 0.05


class Dispatch:
    """Sends texts to a fleet, again where a worker is lost, and gives each its answer. Lives on one event loop."""

    def __init__(
        self,
        fleet: Fleet,
        b_K: npt.NDArray[np.floating],
        *,
        loop: asyncio.AbstractEventLoop,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        unanswered: Callable[[], int],
        settled: Callable[[RemoteText], None],
        max_batch_tokens: int,
        timeout_s: float,
        metrics: Metrics,
    ) -> None:
        """Nothing runs before `take`.

        Args:
            fleet: Tells `lose` and `pump` what becomes of its workers.
            b_K: What the workers' A h lacks.
            loop: Where all of this runs.
            spawn: Starts a task there, and ends it with the loop.
            unanswered: Tokens that were accepted and have no answer.
            settled: Hears of each text just before it gets its answer.
            max_batch_tokens: The most in one request.
            timeout_s: The longest time to an answer.
            metrics: Where to count.
        """
        self._fleet = fleet
        self._b_K = np.asarray(b_K, dtype=np.float64)
        self._loop = loop
        self._spawn = spawn
        self._unanswered = unanswered
        self._settled = settled
        self._max_batch_tokens = max_batch_tokens
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._waiting = Waiting(max_batch_tokens)
        self._open: set[RemoteText] = set()

    def refuse_all(self, error: MetarewardError) -> None:
        """What has no answer gets this one."""
        for text in list(self._open):
            self._settle(text, error)

    def take(self, texts: list[RemoteText]) -> None:
        """A job that was accepted."""
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
        self.pump()

    def pump(self) -> None:
        """Send what waits to who has room."""
        while (head := self._waiting.head()) is not None:
            now = time.monotonic()
            up = self._fleet.up()
            awake = [worker for worker in up if worker.load.paused_until <= now]
            if not awake and any(worker.load.requests for worker in up):
                return  # they are busy with what was accepted here: an answer will come, and come back here
            if not awake:
                pause_s = min((worker.load.paused_until - now for worker in up), default=0.0)
                error = busy(pause_s) if up else nobody(self._fleet)
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
            limit = balance.share_tokens(self._unanswered() - in_flight, len(free), self._max_batch_tokens)
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
        except WorkerBusy as told:
            worker.load.paused_until = time.monotonic() + told.retry_after_s
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
            if worker.connection.queued_tokens == 0:
                worker.load.paused_until = 0.0  # as when it is looked after: an empty queue takes anything
        self._fleet.show(worker)
        self.pump()

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

    def lose(self, worker: RemoteWorker, hangs: bool) -> None:
        """A worker was taken out. One that only refuses what is new may still answer what it holds: it drains, say."""
        worker.load.recent.forget()
        if hangs:
            for flight in list(worker.flights):
                if flight.task is not asyncio.current_task():
                    self._send_again(flight.texts)
                    flight.cancel()
        self.pump()

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

    def forget(self, text: RemoteText) -> None:
        """The caller of a text has left."""
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
        self._settled(text)
        text.on_settled()
        if text.answer.set_running_or_notify_cancel():
            if isinstance(answer, MetarewardError):
                text.answer.set_exception(answer)
            else:
                text.answer.set_result(answer)


def nobody(fleet: Fleet) -> Unavailable:
    """No worker takes texts."""
    return Unavailable("no worker of the engine answers", max(1.0, fleet.next_attempt_s()))


def busy(pause_s: float) -> Overloaded:
    """Every worker is overloaded, for so long at least."""
    return Overloaded("the engine has as much work as it may take on; try again later", max(1.0, pause_s))


def _late() -> Unavailable:
    return Unavailable("the engine did not answer in time")
