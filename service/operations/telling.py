"""New evidence about a user: its texts scored, what is retained of them, and the change itself."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from service.operations.base_reward_requests import BaseRewards
from service.operations.changes import Changed, UserChanges
from service.operations.retention import Retention, retain_hidden_states, retain_texts
from service.operations.said import Measured
from service.operations.serving import Serving
from service.operations.texts import Message, Text
from service.store.records import Change, Idempotency, NewEvidence


class Telling:
    """The way of all new evidence, whoever tells it.

    The device works before anything is locked; then one transaction stores the evidence, solves and writes the version.
    """

    def __init__(self, *, serving: Serving, changes: UserChanges, retention: Retention = "base_rewards") -> None:
        self._serving = serving
        self._changes = changes
        self._retention = retention

    async def __call__(
        self,
        tenant_id: str,
        user_id: str,
        texts: Sequence[Text],
        measure: Callable[[BaseRewards], Sequence[Measured]],
        change: Callable[[Sequence[NewEvidence]], Change],
        *,
        truncate: bool,
        idempotency: Idempotency | None,
    ) -> Changed:
        """Score `texts`, and make the `change` of the evidence that `measure` finds in them.

        Raises:
            InvalidInput: Texts that cannot be scored; whatever `UserChanges` refuses. Nothing was stored.
            QuotaExceeded, Overloaded, Unavailable, EngineError: See `UserChanges`.
        """
        started = time.perf_counter()
        served = self._serving.active
        states_ND, hidden_s = None, 0.0
        if self._retention == "hidden_states":
            # First: what it computes fills the caches that `read` looks into.
            states_ND = await served.hidden_states(tenant_id, texts, truncate=truncate)
            hidden_s = time.perf_counter() - started
        base = await served.base_rewards.read(tenant_id, texts, truncate=truncate)
        measured = measure(base)
        if self._retention == "texts":
            items = [_with(each, retain_texts(*_texts_of(each, texts))) for each in measured]
        elif states_ND is not None:
            items = [_with(each, retain_hidden_states(states_ND[list(each.texts)])) for each in measured]
        else:
            items = [each.evidence for each in measured]
        changed = await self._changes(tenant_id, user_id, change(items), served, idempotency)
        timings_ms = dict(changed.timings_ms)
        if served.base_rewards.tells_times:
            timings_ms |= {"tokenise": base.tokenise_s * 1e3, "engine": (hidden_s + base.engine_s) * 1e3}
            timings_ms["total"] = (time.perf_counter() - started) * 1e3
        return Changed(changed.outcome, timings_ms, [each.evidence_id for each in items])


def _texts_of(measured: Measured, texts: Sequence[Text]) -> tuple[Sequence[Message], list[str]]:
    """The prompt, and the completions in the order of the evidence."""
    return texts[measured.texts[0]].messages, [texts[i].completion for i in measured.texts]


def _with(measured: Measured, payload: bytes) -> NewEvidence:
    return dataclasses.replace(measured.evidence, retained=payload)
