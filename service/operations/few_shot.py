"""Users who are known by a file of choices: adapted in memory as `adapt` would, and stored nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from service.operations.bulk_score import Patience
from service.operations.said import PreferencePair, measure, texts_of
from service.operations.serving import ServedCheckpoint
from service.operations.solving import Solver
from service.operations.texts import GroupKeys
from service.operations.user_states import ResolvedUser
from service.store.records import NewEvidence, StoredEvidence

_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class FewShotPeople:
    """Users by their choices; whoever chose nothing gets the start."""

    users: Mapping[str, ResolvedUser]
    start: ResolvedUser
    population: ResolvedUser

    async def find(self, user_id: str | None) -> ResolvedUser:
        """As `People` has it."""
        return self.population if user_id is None else self.users.get(user_id, self.start)


async def adapt_in_memory(
    choices: Mapping[str, Sequence[PreferencePair]],
    *,
    served: ServedCheckpoint,
    tenant_id: str,
    solver: Solver,
    patience: Patience,
    truncate: bool,
) -> FewShotPeople:
    """Solve for users from their choices, all said at the same moment: the weights that `adapt` would store.

    Args:
        choices: By user, at most as many as a solve uses.
        served: The checkpoint.
        tenant_id: Whose cached texts it sees.
        solver: Of this deployment.
        patience: Waits for the engine.
        truncate: Whether texts that are too long are shortened.

    Raises:
        InvalidInput: Texts that cannot be scored, by user.
        TemporaryError, EngineError: From the engine.
    """
    turns = asyncio.Semaphore(_AT_ONCE)
    now = datetime.now(UTC)

    async def adapt(user_id: str) -> ResolvedUser:
        pairs = choices[user_id]
        texts = [text for i, pair in enumerate(pairs) for text in texts_of(pair, f"choice {i + 1} of {user_id}")]
        async with turns:
            base = await patience(lambda: served.base_rewards.read(tenant_id, texts, truncate=truncate, metered=False))
        # Said twice is said once.
        stored: dict[str, StoredEvidence] = {}
        for i, pair in enumerate(pairs):
            measured = measure(pair, "", base.keys, base.rewards_BK, 2 * i, _NO_GROUPS).evidence
            stored.setdefault(measured.evidence_id, _as_stored(measured, served.checkpoint.heads_id, now))
        solved = await asyncio.to_thread(solver, list(stored.values()), served.checkpoint)
        return ResolvedUser(solved.state, "adapted", 0)

    adapted = await asyncio.gather(*map(adapt, choices))
    start = served.users.start
    return FewShotPeople(
        dict(zip(choices, adapted, strict=True)),
        ResolvedUser(start, "cold_start", 0),
        ResolvedUser(start, "population", 0),
    )


# Only ratings are grouped.
_NO_GROUPS: Final = GroupKeys(b"-")


def _as_stored(new: NewEvidence, heads_id: str, now: datetime) -> StoredEvidence:
    return StoredEvidence(
        evidence_id=new.evidence_id,
        content_key=new.content_key,
        kind=new.kind,
        base_rewards=new.base_rewards,
        grade=new.grade,
        ranks=new.ranks,
        group=new.group,
        weight=new.weight,
        tilt=new.tilt,
        source=new.source,
        event_time=new.event_time or now,
        heads_id=heads_id,
    )
