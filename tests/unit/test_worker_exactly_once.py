"""Every accepted text is answered exactly once, whatever fails, leaves, expires, dies or stops, in whatever order."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import InvalidStateError, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from scripted_backbone import NOT_FINITE, POISON, ScriptedBackbone

from service.errors import EngineError, Overloaded, Unavailable
from service.observability.metrics import WorkerMetrics
from service.worker import messages
from service.worker import worker as worker_module
from service.worker.messages import BaseRewardHeads
from service.worker.supervision import RestartPolicy
from service.worker.worker import Worker

HEADS = BaseRewardHeads.of(np.array([[1.0, 0.5, 0.25], [0.1, 0.2, 0.3]]), np.array([7.0, -7.0]))
TIMEOUT_S = 60
CALLERS = 6
CALLS = 40


class CountingAnswer(messages.Answer):
    """Counts what is said to the caller: each way of ending, and what came after the end."""

    def __init__(self, left: Any) -> None:
        super().__init__(left)
        self.said: list[str] = []
        self.too_late = 0

    def set_result(self, result: Any) -> None:
        self._count("result", super().set_result, result)

    def set_exception(self, exception: BaseException | None) -> None:
        self._count("exception", super().set_exception, exception)

    def cancel(self) -> bool:
        before = self.cancelled()
        cancelled = super().cancel()
        if cancelled and not before:
            self.said.append("cancelled")
        return cancelled

    def _count(self, name: str, end: Any, value: Any) -> None:
        try:
            end(value)
        except InvalidStateError:
            self.too_late += 1
            raise
        self.said.append(name)


class Treacherous(ScriptedBackbone):
    """Fails in every way there is, by a seed; now and then not at all for a while."""

    def __init__(self, seed: int, *, shares_prefixes: bool) -> None:
        super().__init__()
        self.shares_prefixes = shares_prefixes
        self._random = random.Random(seed)
        self.deaths = 0

    def forward(self, batch: Sequence[Sequence[int]], scopes: Sequence[bytes] | None = None) -> torch.Tensor:
        fate = self._random.random()
        if fate < 0.05:
            raise RuntimeError("a moment's weakness")
        if fate < 0.10 and len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if fate < 0.13:
            self.deaths += 1
            raise SystemExit("pulled the plug")
        if fate < 0.25:
            time.sleep(0.002)
        return super().forward(batch)


@dataclass
class Ledger:
    """What callers were promised: each text, its answer, and whether it came too late to be computed."""

    accepted: list[tuple[list[int], CountingAnswer, bool]] = field(default_factory=list)
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def call(worker: Worker, ledger: Ledger, seed: int) -> None:
    """One caller: texts of all kinds, some taken back, some with little time."""
    rng = random.Random(seed)
    for _ in range(CALLS):
        prompt = [rng.randint(1, 5)] * rng.choice([0, 20, 30])
        texts = [
            prompt + [rng.randint(1, 500) for _ in range(rng.randint(1, 12))] for _ in range(rng.choice([1, 2, 8]))
        ]
        for kind in (POISON, NOT_FINITE):
            if rng.random() < 0.07:
                texts[rng.randrange(len(texts))].append(kind)
        deadline = rng.choice([None, None, time.monotonic() + 60, time.monotonic() + 0.002, time.monotonic() - 1])
        late = deadline is not None and deadline < time.monotonic()
        try:
            answers = worker.submit(texts, scope=rng.choice([b"", b"a", b"b"]), deadline=deadline)
        except (Overloaded, Unavailable):
            with ledger.lock:
                ledger.refused += 1
            time.sleep(0.001)
            continue
        with ledger.lock:
            ledger.accepted += [(text, answer, late) for text, answer in zip(texts, answers, strict=True)]
        if rng.random() < 0.2:
            rng.choice(answers).cancel()
        if rng.random() < 0.5:
            wait(answers, TIMEOUT_S)


@pytest.mark.parametrize("ending", ["drain", "refuse", "impatient"])
@pytest.mark.parametrize("seed", range(4))
def test_every_accepted_text_is_answered_exactly_once(monkeypatch, seed, ending):
    monkeypatch.setattr(worker_module, "Answer", CountingAnswer)
    monkeypatch.setattr(worker_module, "_PROBE_INTERVAL_S", 0.01)
    backbone = Treacherous(seed, shares_prefixes=seed % 2 == 0)
    worker = Worker(
        backbone,
        HEADS,
        max_batch_tokens=120,
        max_queue_tokens=1500,
        max_window_s=0.001,
        metrics=WorkerMetrics(),
        # In every other run it dies for good on the way.
        restarts=RestartPolicy(max_restarts=10**6 if seed < 2 else 4, window_s=1e6, first_backoff_s=0.0),
    )
    ledger = Ledger()
    callers = [threading.Thread(target=call, args=(worker, ledger, 100 * seed + place)) for place in range(CALLERS)]
    for thread in callers[: CALLERS // 2]:
        thread.start()
    worker.start()
    for thread in callers[CALLERS // 2 :]:
        thread.start()
    if ending == "drain":
        for thread in callers:
            thread.join(TIMEOUT_S)
    else:
        while len(ledger.accepted) < 150 and any(thread.is_alive() for thread in callers):
            time.sleep(0.001)
    worker.stop(drain=ending == "drain", timeout_s=0 if ending == "impatient" else TIMEOUT_S)
    for thread in callers:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
    assert worker.stop(drain=True, timeout_s=TIMEOUT_S)

    assert len(ledger.accepted) > 50
    ends = {"result": 0, "exception": 0, "cancelled": 0}
    for token_ids, answer, late in ledger.accepted:
        assert len(answer.said) == 1, "neither none nor two"
        assert answer.done()
        if ending != "impatient":
            assert answer.too_late == 0, "nobody even tried to answer twice"
        ends[answer.said[0]] += 1
        if answer.cancelled():
            continue
        error = answer.exception(0)
        if error is None:
            np.testing.assert_allclose(
                answer.result(0), HEADS.A_KD @ ScriptedBackbone.hidden(token_ids).double().numpy() + HEADS.b_K
            )
            assert POISON not in token_ids
            assert not late
        else:
            assert isinstance(error, EngineError | Unavailable)
    stats = worker.stats
    assert ends["result"] > 0
    assert stats.dropped_items <= ends["cancelled"]
    if ending == "drain" and seed < 2:
        assert stats.restarts == backbone.deaths > 0
        assert ends["cancelled"] == stats.dropped_items
        assert stats.failed_items + stats.expired_items == ends["exception"]
    assert worker.queued_tokens == 0
