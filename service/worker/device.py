"""Backbone and heads, on the worker's thread: texts in, and for each an answer or what became of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.backbone.packing import encode
from service.backbone.protocol import Backbone
from service.errors import EngineError
from service.observability.metrics import WorkerMetrics
from service.worker.batch_budget import BatchBudget
from service.worker.batch_cost import BatchCost, PlainCost, SharedCost
from service.worker.faults import Failure, isolate
from service.worker.messages import BaseRewards, Heads, WorkItem

_log = logging.getLogger(__name__)


class Device:
    """Computes, and survives whatever the backbone raises as an `Exception`."""

    def __init__(
        self,
        backbone: Backbone,
        heads: Heads,
        max_batch_tokens: int,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self.spec = backbone.spec
        self.shares_prefixes = backbone.shares_prefixes
        self._backbone = backbone
        self._heads = heads
        self._budget = BatchBudget(max_batch_tokens)
        self._metrics = metrics
        self._known_good: tuple[tuple[int, ...], bytes] | None = None
        self._level = logging.WARNING
        self._show_budget()

    @property
    def max_batch_tokens(self) -> int:
        """How many tokens a batch may compute now."""
        return self._budget.tokens

    def batch_cost(self) -> BatchCost:
        """The cost of a batch that is still empty."""
        return SharedCost() if self.shares_prefixes else PlainCost()

    def key(self, token_ids: Sequence[int]) -> bytes:
        """`WorkItem.key` of a text."""
        return encode(token_ids) if self.shares_prefixes else b""

    def answer(self, items: Sequence[WorkItem], computed_tokens: int) -> list[BaseRewards | EngineError]:
        """Base rewards of each text, or what became of it; raises nothing that is an Exception.

        Args:
            items: One batch.
            computed_tokens: What it was taken to cost.
        """
        before = self._budget.tokens
        outcome = self._attempt(items)
        if not isinstance(outcome, Failure):
            self._budget.fitted(computed_tokens)
            if self._budget.tokens != before:
                self._show_budget()
            return outcome
        if len(items) > 1 and self._metrics is not None:
            self._metrics.batch_bisections.inc()
        self._level = logging.DEBUG
        try:
            answers = isolate(items, outcome, self._attempt, lambda: self._known_good is not None and not self.works())
        finally:
            self._level = logging.WARNING
        if any(isinstance(answer, Failure) and answer.out_of_memory for answer in answers):
            self._budget.restore(before)
            self._show_budget()
        return [
            _error(answer, item) if isinstance(answer, Failure) else answer
            for answer, item in zip(answers, items, strict=True)
        ]

    def works(self) -> bool:
        """Whether the device still answers a text that it answered before: then the others were to blame."""
        if self._known_good is None:
            return False
        token_ids, scope = self._known_good
        outcome = self._compute([token_ids], [scope])
        return not isinstance(outcome, Failure) and isinstance(outcome[0], np.ndarray)

    def _attempt(self, items: Sequence[WorkItem]) -> list[BaseRewards | EngineError] | Failure:
        outcome = self._compute([item.token_ids for item in items], [item.scope for item in items])
        if isinstance(outcome, Failure):
            if outcome.out_of_memory:
                self._make_room(items)
        elif self._known_good is None:  # a golden text, where a self-check comes first
            good = (item for item, answer in zip(items, outcome, strict=True) if isinstance(answer, np.ndarray))
            if (item := next(good, None)) is not None:
                self._known_good = tuple(item.token_ids), item.scope
        return outcome

    def _compute(
        self, texts: Sequence[Sequence[int]], scopes: Sequence[bytes]
    ) -> list[BaseRewards | EngineError] | Failure:
        try:
            rewards_BK = self._heads.apply(self._hidden(texts, scopes))
        except Exception as error:  # whatever it is, it is about these texts or the device, and the thread must live
            # The first attempt tells; those that look for the text to blame would repeat it.
            _log.log(self._level, "the device failed on %d texts", len(texts), exc_info=True)
            return Failure.of(error)
        if np.isfinite(rewards_BK).all():
            return [row_K.copy() for row_K in rewards_BK]
        return [
            row_K.copy() if np.isfinite(row_K).all() else EngineError("this text's base rewards are not finite")
            for row_K in rewards_BK
        ]

    def _hidden(self, texts: Sequence[Sequence[int]], scopes: Sequence[bytes]) -> npt.NDArray[np.float32]:
        hidden_BD: npt.NDArray[np.float32] = self._backbone.forward(texts, scopes).cpu().numpy()
        if hidden_BD.shape != (len(texts), self.spec.hidden_size):
            raise RuntimeError(f"{len(texts)} texts gave hidden states {hidden_BD.shape}. This is a bug.")
        return hidden_BD

    def _make_room(self, items: Sequence[WorkItem]) -> None:
        """The device ran out of memory on `items`; their tensors are gone by now."""
        cost, tokens = self.batch_cost(), 0
        for item in items:
            tokens += cost.of(item)
            cost.add(item)
        if len(items) > 1:  # a text that does not fit alone says nothing of how many do
            self._budget.out_of_memory(tokens)
            _log.warning("out of memory on %d tokens; batches have at most %d now", tokens, self._budget.tokens)
        if self._metrics is not None:
            self._metrics.out_of_memory.inc()
        self._show_budget()
        try:
            self._backbone.release_memory()
        except Exception:
            _log.warning("the backbone could not release memory", exc_info=True)

    def _show_budget(self) -> None:
        if self._metrics is not None:
            self._metrics.batch_token_limit.set(self._budget.tokens)


def _error(failure: Failure, item: WorkItem) -> EngineError:
    if failure.out_of_memory:
        return EngineError(f"the device has not enough memory for this text alone ({item.tokens} tokens); shorten it")
    return EngineError(f"the device failed on this text ({failure.reason})")
