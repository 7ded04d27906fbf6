"""Statements, solves and repositories for the tests of the store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import text

from service.store import (
    Append,
    ChangeOutcome,
    Database,
    HeadsView,
    Idempotency,
    NewEvidence,
    Replace,
    Solution,
    StoredEvidence,
    StoredUser,
    UserRepository,
    open_database,
)
from service.store.records import Matrix

HEADS, CHECKPOINT = "heads-a", "checkpoint-a"


def empty(url: str) -> None:
    """Delete every user of a database, with all that hangs on them, and what serves."""
    database = open_database(url)
    with database.engine.begin() as connection:
        for table in ("users", "serving"):
            connection.execute(text(f"DELETE FROM {table}"))
    database.close()


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def new_pair(
    pair_id: str, *, content: str | None = None, k: int = 3, strength: float | None = None, **more: Any
) -> NewEvidence:
    key = hashlib.sha256((content or pair_id).encode()).digest()
    generator = np.random.default_rng(list(key[:4]))
    return NewEvidence(pair_id, key, "pair", generator.normal(size=k), strength, **more)


def seen_from(heads: str = HEADS, checkpoint: str = CHECKPOINT, maps: Mapping[str, Matrix] | None = None) -> HeadsView:
    return HeadsView(checkpoint, heads, 3, maps or {})


def sum_of_differences(support: Sequence[StoredEvidence]) -> Solution:
    """A solve whose result tells which pairs it saw."""
    terms = [(pair.grade or 1.0) * pair.base_rewards for pair in support]
    weights_K = np.sum(terms, axis=0) if terms else np.zeros(3)
    return Solution(weights_K, np.arange(6.0), {"loss_after": float(len(support)), "accuracy_before": None})


def repository(database: Database, **changes: object) -> UserRepository:
    arguments: dict[str, object] = {"support_limit": 100, "idempotency_ttl_s": 3600.0}
    return UserRepository(database, **(arguments | changes))  # type: ignore[arg-type]


def adapt(
    users: UserRepository,
    pairs: Sequence[NewEvidence],
    *,
    tenant: str = "tenant",
    user: str = "ada",
    mode: str = "append",
    heads: str = HEADS,
    checkpoint: str = CHECKPOINT,
    key: Idempotency | None = None,
    solve: object = sum_of_differences,
) -> tuple[ChangeOutcome, StoredUser]:
    change = Append(pairs) if mode == "append" else Replace(pairs)
    return users.change(tenant, user, change, seen_from(heads, checkpoint), key, solve)  # type: ignore[arg-type]
