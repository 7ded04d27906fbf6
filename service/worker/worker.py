"""The one thread that owns the device: batches of waiting texts in, base rewards out.

What it promises: every accepted text gets exactly one answer; a text that fails, fails alone; whatever the backbone
raises, the thread lives on; and where it does die, everything that waits is told and `healthy` is false.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import replace
from typing import Final

import numpy as np

from service.backbone.protocol import Backbone
from service.errors import ConfigurationError, EngineError, MetarewardError, Overloaded, Unavailable
from service.observability.metrics import WorkerMetrics
from service.worker.admission import Admission, Speed
from service.worker.messages import BaseRewardHeads, BaseRewards, WorkerStats, WorkItem
from service.worker.queue import TokenQueue

_log = logging.getLogger(__name__)

# While the device fails, a text that it once answered is tried this often, so that `healthy` can come back.
_PROBE_INTERVAL_S: Final = 5.0


class Worker:
    """Owns a backbone and a checkpoint's heads. Any number of threads may submit."""

    shared = False
    """No other process depends on it; see `service.operations.engine.Engine`."""

    def __init__(
        self,
        backbone: Backbone,
        heads: BaseRewardHeads,
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        max_queue_wait_s: float = math.inf,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            backbone: Used by this worker's thread only, from `start` on.
            heads: What turns its hidden states into base rewards.
            max_batch_tokens: The most tokens in one batch; a longer text goes alone.
            max_queue_tokens: The most tokens that may wait for the device.
            max_queue_wait_s: The longest wait, as estimated from the device's recent speed; beyond it nothing is
                accepted.
            metrics: Where to count; None for nowhere.

        Raises:
            ConfigurationError: Heads and backbone do not fit each other, or a limit is not positive.
        """
        hidden_size = backbone.spec.hidden_size
        if heads.A_KD.shape[1] != hidden_size:
            raise ConfigurationError(
                f"the checkpoint's heads read {heads.A_KD.shape[1]} numbers, but backbone {backbone.spec.id} gives "
                f"{hidden_size}: serve the checkpoint with the backbone that it was trained on"
            )
        if max_batch_tokens < 1 or max_queue_tokens < 1:
            raise ConfigurationError("max_batch_tokens and max_queue_tokens must be at least 1")
        self._backbone = backbone
        self._heads = heads
        self._max_batch_tokens = max_batch_tokens
        self._queue: TokenQueue[WorkItem] = TokenQueue(max_queue_tokens)
        self._admission = Admission(max_queue_tokens, max_queue_wait_s)
        self._speed = Speed()
        self._metrics = metrics
        self._in_flight: list[WorkItem] = []
        self._tokens_in_flight = 0
        self._changed = threading.Condition()  # guards all of what follows, the queue and _in_flight
        self._accepting = True
        self._device_fails = False
        self._somebody_left = False
        self._known_good: Sequence[int] | None = None
        self._stats = WorkerStats()
        self._thread = threading.Thread(target=self._run, name="metareward-worker", daemon=True)

    @property
    def healthy(self) -> bool:
        """Whether the thread runs, takes work, and its device answered when last asked."""
        return self._thread.is_alive() and self._accepting and not self._device_fails

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

        Returns:
            For each text a future of its base rewards [K] float64. It may end in `EngineError` (the device failed on
            this text) or `Unavailable` (the worker stopped first).

        Raises:
            Overloaded: The queue is full; says when to come back.
            Unavailable: The worker is stopping, or its thread died.
            ValueError: A text is empty or longer than the backbone reads; renderers never give one.
        """
        longest = self._backbone.spec.max_tokens
        for index, token_ids in enumerate(texts):
            if not 0 < len(token_ids) <= longest:
                raise ValueError(f"text {index} has {len(token_ids)} tokens; the backbone reads 1 to {longest}")
        tokens = sum(map(len, texts))
        self.check_room(tokens)  # before anything is made for it: refusing must stay cheap under overload
        now = time.monotonic()
        items = [WorkItem(token_ids, Future(), now) for token_ids in texts]
        with self._changed:
            self._require_room(tokens)
            self._queue.admit(items)
            self._changed.notify()
        for item in items:
            item.answer.add_done_callback(self._note_departure)
        return [item.answer for item in items]

    def check_room(self, tokens: int) -> None:
        """Refuse early what `submit` would refuse now; `tokens` may be a lower bound of what is to come.

        Raises:
            Overloaded, Unavailable: As `submit` does.
        """
        with self._changed:
            self._require_room(tokens)

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
            waiting = [] if drain and self._thread.is_alive() else self._queue.clear()
            self._changed.notify_all()
        self._refuse(waiting)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        with self._changed:
            late, on_device = self._queue.clear(), self._in_flight
        self._refuse(late, on_device)
        return not self._thread.is_alive()

    def _require_room(self, tokens: int) -> None:
        if not self._accepting:
            raise Unavailable("the worker is stopping")
        refusal = self._refusal(tokens)
        if refusal is not None and self._somebody_left:
            # Looking through the whole queue is worth it only where it can find something.
            self._somebody_left = False
            self._drop(self._queue.discard(_has_left))
            refusal = self._refusal(tokens)
        if refusal is not None:
            raise refusal

    def _refusal(self, tokens: int) -> Overloaded | None:
        waiting = self._queue.tokens
        if not waiting:
            return None
        ahead = waiting + self._tokens_in_flight
        return self._admission.refusal(tokens, waiting=waiting, ahead=ahead, speed=self._speed.tokens_per_s)

    def _note_departure(self, answer: Future[BaseRewards]) -> None:
        if answer.cancelled():
            self._somebody_left = True

    def _run(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                if batch:
                    self._answer(batch)
                else:
                    self._probe()
        except BaseException:
            _log.critical("the worker's thread dies; everything that waits is refused", exc_info=True)
        finally:
            with self._changed:
                self._accepting = False
                left, on_device = self._queue.clear(), self._in_flight
                self._in_flight, self._tokens_in_flight = [], 0
            self._refuse(left, on_device)

    def _next_batch(self) -> list[WorkItem] | None:
        """Wait for work. None: time to end. Empty: nothing came while the device fails, so try it."""
        with self._changed:
            while True:
                batch = self._queue.next_batch(self._max_batch_tokens, self._take)
                if batch:
                    self._in_flight = batch
                    self._tokens_in_flight = sum(item.tokens for item in batch)
                    return batch
                if not self._accepting:
                    return None
                if not self._changed.wait(_PROBE_INTERVAL_S if self._device_fails else None):
                    return []

    def _take(self, item: WorkItem) -> bool:
        taken = item.answer.set_running_or_notify_cancel()
        if not taken:
            self._drop(1)
        return taken

    def _drop(self, count: int) -> None:
        self._stats = replace(self._stats, dropped_items=self._stats.dropped_items + count)
        if self._metrics is not None and count:
            self._metrics.worker_texts.labels("dropped").inc(count)

    def _answer(self, batch: list[WorkItem]) -> None:
        started = time.perf_counter()
        answers = self._compute([item.token_ids for item in batch])
        good = [item for item, answer in zip(batch, answers, strict=True) if isinstance(answer, np.ndarray)]
        if good and self._known_good is None:
            self._known_good = tuple(good[0].token_ids)  # a golden text, where a self-check comes first
        device_fails = not good and not self._answers_known_good()
        seconds = time.perf_counter() - started
        with self._changed:
            self._device_fails = device_fails
            self._in_flight, self._tokens_in_flight = [], 0
            before = self._stats
            self._stats = replace(
                before,
                batches=before.batches + 1,
                items=before.items + len(batch),
                tokens=before.tokens + sum(item.tokens for item in batch),
                failed_items=before.failed_items + len(batch) - len(good),
                busy_s=before.busy_s + seconds,
            )
            if len(good) == len(batch):  # a device that fails at once is not fast
                tokens = sum(item.tokens for item in batch)
                self._speed.note(tokens, seconds, full=2 * tokens >= self._max_batch_tokens)
        if self._metrics is not None:
            _record(self._metrics, batch, len(good), seconds)
        for item, answer in zip(batch, answers, strict=True):
            _settle(item, answer)

    def _compute(self, texts: list[Sequence[int]]) -> list[BaseRewards | EngineError]:
        """Base rewards of each text, or what became of it; raises nothing that is an Exception."""
        try:
            rewards_BK = self._heads.apply(self._hidden(texts))
        except Exception as error:  # whatever it is, it is about these texts or the device, and the thread must live
            _log.warning("the device failed on a batch of %d texts", len(texts), exc_info=True)
            if len(texts) == 1:
                # Without its cause: a traceback keeps the tensors of its frames on the device.
                return [EngineError(f"the device failed on this text ({type(error).__name__})")]
        else:
            return [
                row_K.copy() if np.isfinite(row_K).all() else EngineError("this text's base rewards are not finite")
                for row_K in rewards_BK
            ]
        return [self._compute([token_ids])[0] for token_ids in texts]

    def _hidden(self, texts: Sequence[Sequence[int]]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        hidden_BD = self._backbone.forward(texts).cpu().numpy()
        if hidden_BD.shape != (len(texts), self._backbone.spec.hidden_size):
            raise RuntimeError(f"{len(texts)} texts gave hidden states {hidden_BD.shape}. This is a bug.")
        return hidden_BD

    def _answers_known_good(self) -> bool:
        """Whether the device still answers a text that it answered before: then the others were to blame."""
        return self._known_good is not None and isinstance(self._compute([self._known_good])[0], np.ndarray)

    def _probe(self) -> None:
        answers = self._answers_known_good()
        with self._changed:
            self._device_fails = not answers

    @staticmethod
    def _refuse(waiting: Sequence[WorkItem], on_device: Sequence[WorkItem] = ()) -> None:
        # A caller that left and waits for its own cancelled future hears of it in set_running_or_notify_cancel.
        refused = [item for item in waiting if item.answer.set_running_or_notify_cancel()]
        for item in [*refused, *on_device]:
            _settle(item, Unavailable("the worker stopped before it could answer this text"))


def _record(metrics: WorkerMetrics, batch: Sequence[WorkItem], answered: int, seconds: float) -> None:
    metrics.batch_tokens.observe(sum(item.tokens for item in batch))
    metrics.batch_texts.observe(len(batch))
    metrics.batch_seconds.observe(seconds)
    metrics.worker_texts.labels("answered").inc(answered)
    if answered < len(batch):
        metrics.worker_texts.labels("failed").inc(len(batch) - answered)
    began = time.monotonic() - seconds
    for item in batch:
        metrics.queue_seconds.observe(max(0.0, began - item.submitted_at))


def _has_left(item: WorkItem) -> bool:
    return item.answer.cancelled() and not item.answer.set_running_or_notify_cancel()


def _settle(item: WorkItem, answer: BaseRewards | MetarewardError) -> None:
    """Give a text on the device its answer, unless it has one because `stop` ran out of patience."""
    try:
        if isinstance(answer, MetarewardError):
            item.answer.set_exception(answer)
        else:
            item.answer.set_result(answer)
    except InvalidStateError:
        _log.debug("an answer came after its future was settled")
