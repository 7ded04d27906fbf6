"""Adapting a user to what they said: choices, ratings, rankings."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Literal

from service.operations.changes import Changed, UserChanges, idempotency_of
from service.operations.retention import Retention, retain_hidden_states, retain_texts
from service.operations.said import Measured, Statement, measure, texts_of
from service.operations.serving import Serving
from service.operations.texts import GroupKeys, Message, Text
from service.store.records import Append, NewEvidence, Replace

Mode = Literal["append", "replace"]


class Adapt:
    """The use case behind `POST /users/{id}/adapt`.

    The device works before anything is locked; then one transaction stores the evidence, solves and writes the version.
    """

    def __init__(
        self,
        *,
        serving: Serving,
        changes: UserChanges,
        groups: GroupKeys,
        retention: Retention = "base_rewards",
    ) -> None:
        self._serving = serving
        self._changes = changes
        self._groups = groups
        self._retention = retention

    async def __call__(
        self,
        tenant_id: str,
        user_id: str,
        said: Sequence[tuple[str, Statement]],
        *,
        mode: Mode,
        truncate: bool,
        idempotency_key: str | None = None,
        body: bytes = b"",
    ) -> Changed:
        """Store what a user `said`, and adapt them to all that they ever said.

        Args:
            tenant_id: Whose user.
            user_id: The user; made if unknown.
            said: Statements, each behind the path of where it stands in the request, such as ``pairs[3]``.
            mode: ``replace`` sets aside what was said before.
            truncate: Whether texts that are too long are shortened.
            idempotency_key: The answer is kept under it, and given again to the same key with the same `body`.
            body: What was asked, byte by byte.

        Raises:
            InvalidInput: Statements that cannot be scored or whose id means something else; an Idempotency-Key used
                before for something else. Nothing was stored.
            QuotaExceeded: The tenant's tokens or users are used up. Nothing was stored.
            Overloaded, Unavailable, EngineError: Nothing was stored, except where the database went away after the
                commit: repeat with the same Idempotency-Key to learn which.
        """
        started = time.perf_counter()
        served = self._serving.active
        texts = [text for field, statement in said for text in texts_of(statement, field)]
        states_ND = None
        if self._retention == "hidden_states":
            # First: what it computes fills the caches that `read` looks into.
            states_ND = await served.hidden_states(tenant_id, texts, truncate=truncate)
        base = await served.base_rewards.read(tenant_id, texts, truncate=truncate)
        measured = []
        first = 0
        for field, statement in said:
            measured.append(measure(statement, field, base.keys, base.rewards_BK, first, self._groups))
            first += len(statement.completions)
        if self._retention == "texts":
            items = [_with(each, retain_texts(*_texts_of(each, texts))) for each in measured]
        elif states_ND is not None:
            items = [_with(each, retain_hidden_states(states_ND[list(each.texts)])) for each in measured]
        else:
            items = [each.evidence for each in measured]
        changed = await self._changes(
            tenant_id,
            user_id,
            Replace(items) if mode == "replace" else Append(items),
            served,
            idempotency_of(idempotency_key, "adapt", body),
        )
        timings_ms = dict(changed.timings_ms)
        if served.base_rewards.tells_times:
            timings_ms |= {"tokenise": base.tokenise_s * 1e3, "engine": base.engine_s * 1e3}
            timings_ms["total"] = (time.perf_counter() - started) * 1e3
        return Changed(changed.outcome, timings_ms)


def _texts_of(measured: Measured, texts: Sequence[Text]) -> tuple[Sequence[Message], list[str]]:
    """The prompt, and the completions in the order of the evidence."""
    return texts[measured.texts[0]].messages, [texts[i].completion for i in measured.texts]


def _with(measured: Measured, payload: bytes) -> NewEvidence:
    return dataclasses.replace(measured.evidence, retained=payload)
