"""Adapting a user to what they said: choices, ratings, rankings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from service.operations.base_reward_requests import BaseRewards
from service.operations.changes import Changed, idempotency_of
from service.operations.said import Measured, Statement, measure, texts_of
from service.operations.telling import Telling
from service.operations.texts import GroupKeys
from service.store.records import Append, Replace

Mode = Literal["append", "replace"]


class Adapt:
    """The use case behind `POST /users/{id}/adapt`."""

    def __init__(self, *, telling: Telling, groups: GroupKeys) -> None:
        self._telling = telling
        self._groups = groups

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
        texts = [text for field, statement in said for text in texts_of(statement, field)]

        def measure_all(base: BaseRewards) -> list[Measured]:
            measured = []
            first = 0
            for field, statement in said:
                measured.append(measure(statement, field, base.keys, base.rewards_BK, first, self._groups))
                first += len(statement.completions)
            return measured

        return await self._telling(
            tenant_id,
            user_id,
            texts,
            measure_all,
            Replace if mode == "replace" else Append,
            truncate=truncate,
            idempotency=idempotency_of(idempotency_key, "adapt", body),
        )
