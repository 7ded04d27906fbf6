"""The one thread that owns the device: batches of waiting texts in, base rewards out.

What it promises: every accepted text gets exactly one answer; a text that fails, fails alone; whatever the backbone
raises, the thread lives on. Where it dies nevertheless, what was on the device is answered with an error, `healthy` is
false, and a fresh thread answers what waits; where it dies too often, everybody is told.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Final

import numpy as np

from service.backbone.protocol import Backbone
from service.errors import ConfigurationError, EngineError, Overloaded, Unavailable
from service.observability.metrics import WorkerMetrics
from service.worker.admission import Admission, Speed
from service.worker.batch_metrics import record_batch
from service.worker.coalescing import CoalescingWindow
from service.worker.device import Device
from service.worker.messages import Answer, BaseRewards, Heads, WorkerStats, WorkItem
from service.worker.queue import Batch, FairQueue
from service.worker.supervision import RestartPolicy, SupervisedThread

_log = logging.getLogger(__name__)

# While the device fails, a text that it once answered is tried this often, so that `healthy` can come back.
_PROBE_INTERVAL_S: Final = 5.0
# When the thread wants to be woken: at so many jobs that wait, or so many tokens.
_AT_ONCE: Final = (1.0, 1.0)
_NEVER: Final = (math.inf, math.inf)
_NOTHING: Final[Batch[WorkItem]] = Batch([], 0, 0, 0)


class Worker:
    """Owns a backbone and the heads of one checkpoint or several. Any number of threads may submit."""

    shared = False
    """No other process depends on it; see `service.operations.engine.Engine`."""

    def __init__(
        self,
        backbone: Backbone,
        heads: Heads,
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        max_queue_wait_s: float = math.inf,
        max_window_s: float = 0.0,
        metrics: WorkerMetrics | None = None,
        restarts: RestartPolicy | None = None,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            backbone: Used by this worker's thread only, from `start` on.
            heads: What turns its hidden states into base rewards.
            max_batch_tokens: The most tokens that one batch computes; a longer text goes alone.
            max_queue_tokens: The most tokens that may wait for the device ahead of a job, when that comes.
            max_queue_wait_s: The longest wait, as estimated from the device's recent speed; beyond it nothing is
                accepted.
            max_window_s: The longest that an idle device waits for more texts where several callers ask; 0 for never.
            metrics: Where to count; None for nowhere.
            restarts: How often the thread is started again where it dies; None for a few times a minute.

        Raises:
            ConfigurationError: Heads and backbone do not fit each other, or a limit is not positive.
        """
        hidden_size = backbone.spec.hidden_size
        if heads.hidden_size != hidden_size:
            raise ConfigurationError(
                f"the checkpoint's heads read {heads.hidden_size} numbers, but backbone {backbone.spec.id} gives "
                f"{hidden_size}: serve the checkpoint with the backbone that it was trained on"
            )
        if max_batch_tokens < 1 or max_queue_tokens < 1:
            raise ConfigurationError("max_batch_tokens and max_queue_tokens must be at least 1")
        self._device = Device(backbone, heads, max_batch_tokens, metrics)
        self._queue: FairQueue[WorkItem] = FairQueue()
        self._admission = Admission(max_queue_tokens, max_queue_wait_s)
        self._speed = Speed()
        self._window = CoalescingWindow(max_window_s)
        self._metrics = metrics
        self._changed = threading.Condition()  # guards all of what follows, and the queue, the speed and the window
        self._in_flight: list[WorkItem] = []  # taken from the queue and not yet answered
        self._expired: list[WorkItem] = []  # so are these; they never reach the device
        self._tokens_in_flight = 0
        self._accepting = True
        self._device_fails = False
        self._somebody_left = False
        self._next_deadline = math.inf
        self._left_over = False  # whether the last batch had no room for all that waited
        self._last_batch_s = 0.0
        self._wake_at = _NEVER
        self._stats = WorkerStats()
        self._thread = SupervisedThread(
            self._run,
            name="metareward-worker",
            policy=restarts or RestartPolicy(),
            died=self._bury,
            restarted=self._count_restart,
            ended=self._end,
        )

    @property
    def healthy(self) -> bool:
        """Whether the thread runs, takes work, and its device answered when last asked."""
        return self._thread.runs and self._accepting and not self._device_fails

    @property
    def queued_tokens(self) -> int:
        """Tokens accepted and not yet answered, those on the device included."""
        with self._changed:
            return self._queue.tokens + self._tokens_in_flight

    @property
    def stats(self) -> WorkerStats:
        """Counters since the start, as one consistent set."""
        with self._changed:
            return self._stats

    def start(self) -> None:
        """Start the thread. What was submitted before is answered first."""
        self._thread.start()

    def submit(
        self, texts: Sequence[Sequence[int]], *, scope: bytes = b"", deadline: float | None = None
    ) -> list[Future[BaseRewards]]:
        """Queue texts (token ids): all of them, or none.

        Cancelling a future before its batch is formed keeps its text off the device. Callbacks of a future run on the
        worker's thread: they must be quick.

        Args:
            texts: One job. Jobs of a scope take turns on the device, and so do scopes.
            scope: Whose texts they are.
            deadline: On the monotonic clock; a text that has not reached the device by then never does.

        Returns:
            For each text a future of its base rewards [K] float64. It may end in `EngineError` (the device failed on
            this text) or `Unavailable` (the worker stopped first, or the deadline passed).

        Raises:
            Overloaded: The queue is full; says when to come back.
            Unavailable: The worker is stopping, or its thread died for good.
            ValueError: A text is empty or longer than the backbone reads; renderers never give one.
        """
        longest, tokens = self._device.spec.max_tokens, 0
        for index, token_ids in enumerate(texts):
            length = len(token_ids)
            if not 0 < length <= longest:
                raise ValueError(f"text {index} has {length} tokens; the backbone reads 1 to {longest}")
            tokens += length
        self.check_room(tokens, scope=scope)  # before anything is made for it: refusing must stay cheap under overload
        now, key = time.monotonic(), self._device.key
        items = [
            WorkItem(token_ids, len(token_ids), Answer(self._note_departure), now, scope, key(token_ids), deadline)
            for token_ids in texts
        ]
        with self._changed:
            self._require_room(tokens, scope)
            self._queue.admit(items, scope)
            if deadline is not None and deadline < self._next_deadline:
                self._next_deadline = deadline
            if self._is_awaited():
                self._changed.notify_all()
        return [item.answer for item in items]

    def check_room(self, tokens: int, *, scope: bytes = b"") -> None:
        """Refuse early what `submit` would refuse now; `tokens` may be a lower bound of what is to come.

        Raises:
            Overloaded, Unavailable: As `submit` does.
        """
        with self._changed:
            self._require_room(tokens, scope)

    def base_rewards(self, texts: Sequence[Sequence[int]], timeout_s: float | None = None) -> BaseRewards:
        """Submit and wait: [N, K]. For self-checks and scripts; raises the first text's error, or TimeoutError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        rows = [
            future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
            for future in self.submit(texts)
        ]
        return np.stack(rows)

    def stop(self, *, drain: bool, timeout_s: float) -> bool:
        """Take no more work and end the thread.

        Args:
            drain: Answer what waits first. Otherwise what waits ends in `Unavailable`; the batch on the device is
                answered in either case.
            timeout_s: How long to wait for that; what is unanswered then ends in `Unavailable` too.

        Returns:
            Whether the thread has ended.
        """
        with self._changed:
            self._accepting = False
            drain = drain and self._thread.supervised
            waiting = [] if drain else self._queue.clear()
            self._changed.notify_all()
        if not drain:
            self._thread.leave()
        self._refuse(waiting)
        ended = self._thread.join(timeout_s)
        self._thread.leave()
        self._refuse(*self._unanswered())
        return ended

    def _require_room(self, tokens: int, scope: bytes) -> None:
        if not self._accepting:
            raise Unavailable("the worker is stopping, or has stopped")
        refusal = self._refusal(tokens, scope)
        # Looking through the whole queue is worth it only where it can find something.
        if refusal is not None and (self._somebody_left or time.monotonic() >= self._next_deadline):
            self._somebody_left, self._next_deadline = False, math.inf
            self._queue.discard(self._is_needless)
            refusal = self._refusal(tokens, scope)
        if refusal is not None:
            raise refusal

    def _refusal(self, tokens: int, scope: bytes) -> Overloaded | None:
        waiting = self._queue.tokens
        if (refusal := self._refusal_behind(waiting, tokens)) is None:
            return None
        # A job that waits for more than its turns does not have others refused: they overtake it.
        ahead = self._queue.ahead_of(tokens, scope, self._device.max_batch_tokens)
        return refusal if ahead == waiting else self._refusal_behind(ahead, tokens)

    def _refusal_behind(self, waiting: int, tokens: int) -> Overloaded | None:
        ahead = waiting + self._tokens_in_flight
        return self._admission.refusal(tokens, waiting=waiting, ahead=ahead, speed=self._speed.tokens_per_s)

    def _note_departure(self) -> None:
        self._somebody_left = True

    def _is_awaited(self) -> bool:
        """Whether the thread waits for what there is now."""
        jobs, tokens = self._wake_at
        return self._queue.jobs >= jobs or self._queue.tokens >= tokens

    def _is_needless(self, item: WorkItem) -> bool:
        """Whether nobody waits for a text any more; one whose deadline has passed is kept to be told so."""
        if item.answer.cancelled():
            return not self._take(item)
        if item.deadline is None:
            return False
        if item.deadline <= time.monotonic():
            return not self._take(item)
        self._next_deadline = min(self._next_deadline, item.deadline)
        return False

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            if self._expired:
                self._refuse_expired()
            if batch.items:
                self._answer(batch)
            elif self._device_fails:
                works = self._device.works()
                with self._changed:
                    self._device_fails = not works

    def _next_batch(self) -> Batch[WorkItem] | None:
        """Wait for work. None: time to end. Empty: all of it was dropped, or nothing came while the device fails."""
        with self._changed:
            while not len(self._queue):
                if not self._accepting:
                    return None
                if self._expired:
                    return _NOTHING
                self._wake_at = _AT_ONCE
                if not self._changed.wait(_PROBE_INTERVAL_S if self._device_fails else None):
                    self._wake_at = _NEVER
                    return _NOTHING
            waited_s, came = self._wait_for_company()
            self._wake_at = _NEVER
            budget = self._device.max_batch_tokens
            batch = self._queue.next_batch(budget, self._device.batch_cost(), self._take)
            self._left_over = len(self._queue) > 0
            if batch.items:
                self._in_flight = batch.items
                self._tokens_in_flight = batch.tokens
                self._window.note(
                    jobs=batch.jobs,
                    fill=batch.computed_tokens / budget,
                    waited_s=waited_s,
                    came=came,
                    batch_s=self._last_batch_s,
                )
            return batch

    def _wait_for_company(self) -> tuple[float, int]:
        """Hold a small batch back for a moment where others are expected: for how long, and how many jobs came."""
        if self._window.seconds <= 0 or self._left_over:
            return 0.0, 0
        jobs, began, waited_s = self._queue.jobs, time.monotonic(), 0.0
        self._wake_at = self._window.enough_jobs, self._device.max_batch_tokens
        while self._accepting and not self._is_awaited() and waited_s < self._window.seconds:
            self._changed.wait(self._window.seconds - waited_s)
            waited_s = time.monotonic() - began
        if waited_s and self._metrics is not None:
            self._metrics.window_seconds.observe(waited_s)
        return waited_s, self._queue.jobs - jobs

    def _take(self, item: WorkItem) -> bool:
        """Whether a text goes to the device; if not, its caller has left or is to be told that it is too late."""
        if not item.answer.set_running_or_notify_cancel():
            self._stats = replace(self._stats, dropped_items=self._stats.dropped_items + 1)
            if self._metrics is not None:
                self._metrics.worker_texts.labels("dropped").inc()
            return False
        if item.deadline is not None and item.deadline <= time.monotonic():
            self._expired.append(item)
            return False
        return True

    def _refuse_expired(self) -> None:
        """One by one, so that whatever happens meanwhile none is lost, and none is told twice."""
        while True:
            with self._changed:
                if not self._expired:
                    return
                item = self._expired.pop()
                self._stats = replace(self._stats, expired_items=self._stats.expired_items + 1)
            if self._metrics is not None:
                self._metrics.worker_texts.labels("expired").inc()
            item.settle(Unavailable("this text's time was up before the device could begin with it"))

    def _answer(self, batch: Batch[WorkItem]) -> None:
        items = batch.items
        started = time.monotonic()
        answers = self._device.answer(items, batch.computed_tokens)
        good = sum(isinstance(answer, np.ndarray) for answer in answers)
        device_fails = not good and not self._device.works()
        seconds = time.monotonic() - started
        with self._changed:
            self._device_fails = device_fails
            self._last_batch_s = seconds
            self._window.expect(batch.jobs + self._queue.jobs)
            self._tokens_in_flight = 0
            before = self._stats
            self._stats = replace(
                before,
                batches=before.batches + 1,
                items=before.items + len(items),
                tokens=before.tokens + batch.tokens,
                computed_tokens=before.computed_tokens + batch.computed_tokens,
                failed_items=before.failed_items + len(items) - good,
                busy_s=before.busy_s + seconds,
            )
            if good == len(items):  # a device that fails at once is not fast
                full = 2 * batch.computed_tokens >= self._device.max_batch_tokens
                self._speed.note(batch.tokens, seconds, full=full)
        if self._metrics is not None:
            record_batch(self._metrics, batch, good, started, seconds)
        for item, answer in zip(items, answers, strict=True):
            item.settle(answer)
        self._in_flight = []

    def _bury(self) -> None:
        """The thread dies: what was on the device is told, what waits goes on waiting."""
        with self._changed:
            on_device, self._in_flight, self._tokens_in_flight = self._in_flight, [], 0
            self._wake_at = _NEVER
        error = EngineError("the engine's thread died while this text was on the device")
        failed = sum(item.settle(error) for item in on_device)
        with self._changed:
            self._stats = replace(self._stats, failed_items=self._stats.failed_items + failed)
        if self._metrics is not None:
            self._metrics.worker_texts.labels("failed").inc(failed)

    def _count_restart(self) -> None:
        with self._changed:
            self._stats = replace(self._stats, restarts=self._stats.restarts + 1)
        if self._metrics is not None:
            self._metrics.worker_restarts.inc()

    def _end(self) -> None:
        with self._changed:
            self._accepting = False
        self._refuse(*self._unanswered())

    def _unanswered(self) -> tuple[list[WorkItem], list[WorkItem]]:
        """What waits, and what left the queue and has no answer: for the caller to refuse, and for nobody else."""
        with self._changed:
            left = [*self._in_flight, *self._expired]
            self._in_flight, self._expired, self._tokens_in_flight = [], [], 0
            return self._queue.clear(), left

    @staticmethod
    def _refuse(waiting: Sequence[WorkItem], on_device: Sequence[WorkItem] = ()) -> None:
        # A caller that left and waits for its own cancelled future hears of it in set_running_or_notify_cancel.
        refused = [item for item in waiting if item.answer.set_running_or_notify_cancel()]
        for item in [*refused, *on_device]:
            item.settle(Unavailable("the worker stopped before it could answer this text"))
