"""Changing what a user said: one transaction that locks the user, changes the statements, solves and keeps the answer.

The order of locks and the reasons are in docs/decisions/ (the adapt transaction; one lock per change).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from service.errors import EngineError, NotFound, Unavailable
from service.store.evidence import UserEvidence
from service.store.failures import RETRY_AFTER_S
from service.store.history import ADAPT, drop_versions, find_version, forget_weights, keep_version
from service.store.idempotency import forget_answers, keep_answer, kept_answer
from service.store.records import (
    Append,
    Change,
    ChangeOutcome,
    Delete,
    HeadsView,
    Idempotency,
    Replace,
    Reset,
    Rollback,
    Solution,
    StoredEvidence,
    StoredUser,
    Vector,
)
from service.store.serials import Serials
from service.store.support import support_set
from service.store.tables import UserRow
from service.store.tenants import check_max_users
from service.store.vectors import from_bytes, to_bytes

Solve = Callable[[Sequence[StoredEvidence]], Solution]

# An erase between our insert and our lock takes the row away; it cannot do so for ever.
_LOCK_ATTEMPTS = 5

# Built once: building a statement takes SQLAlchemy longer than most databases take to run it.
BY_NAME = select(UserRow.__table__).where(
    UserRow.tenant_id == bindparam("tenant_id"), UserRow.user_id == bindparam("user_id")
)
_LOCKED = BY_NAME.with_for_update()
_MAKE = {
    dialect: insert(UserRow).inline().on_conflict_do_nothing(index_elements=["tenant_id", "user_id"])
    for dialect, insert in (("postgresql", postgresql.insert), ("sqlite", sqlite.insert))
}
_WRITE = update(UserRow).where(UserRow.incarnation == bindparam("life"))


@dataclass(frozen=True, slots=True)
class Policy:
    """How changes are made.

    Attributes:
        support_limit: Newest statements that a solve uses.
        history_versions: Versions before the present one that are kept; with 0 nothing that ceased to count is.
        idempotency_ttl: How long answers are kept.
    """

    support_limit: int
    history_versions: int
    idempotency_ttl: timedelta


@dataclass(frozen=True, slots=True, eq=False)
class _Effect:
    """What a change did to the statements."""

    cause: str
    received: int = 0
    stored: int = 0
    deleted: int = 0
    # Whether something is gone for good, and with it all that was computed from it.
    forgets: bool = False
    # Of a rollback: the weights of the version gone back to.
    back_to: bytes | None = None


def change_user(
    connection: Connection,
    policy: Policy,
    tenant_id: str,
    user_id: str,
    change: Change,
    view: HeadsView,
    idempotency: Idempotency | None,
    solve: Solve,
    now: datetime,
) -> tuple[ChangeOutcome, StoredUser]:
    """Make `change` inside the transaction of `connection`; see `UserRepository.change`."""
    if isinstance(change, Append | Replace):
        row = _lock_or_make(connection, tenant_id, user_id, view, now)
    else:
        row = _lock(connection, tenant_id, user_id)
    if idempotency is not None:
        answer = kept_answer(connection, row.incarnation, idempotency, now)
        if answer is not None:
            return answer, to_user(row)
    # Clocks of replicas differ. Under the lock time must not run backwards, or a later pair would be older.
    now_here = max(now, row.updated_at)
    evidence = UserEvidence(connection, tenant_id, row.incarnation, view.heads_id, row.live, row.next_serial)
    if policy.history_versions and row.version:
        keep_version(connection, row.incarnation, evidence.live)
    effect = _apply(connection, change, row, evidence, now_here)
    if effect.forgets:
        forget_weights(connection, row.incarnation)
        forget_answers(connection, row.incarnation)
    version = row.version + 1
    _prune(connection, policy, row.incarnation, version, evidence)

    support = support_set(connection, row.incarnation, view, policy.support_limit)
    solution = solve(support.evidence)
    require_finite("the solve's result", solution.weights_K, solution.factor, *solution.report.values())
    user = StoredUser(
        tenant_id=tenant_id,
        user_id=user_id,
        incarnation=row.incarnation,
        version=version,
        checkpoint_id=view.checkpoint_id,
        heads_id=view.heads_id,
        weights_K=from_bytes(to_bytes(solution.weights_K)),
        factor=None if solution.factor is None else from_bytes(to_bytes(solution.factor)),
        pairs=support.total,
        created_at=row.created_at,
        updated_at=now_here,
    )
    _write(connection, user, effect.cause, evidence)
    outcome = ChangeOutcome(
        user_id=user_id,
        incarnation=user.incarnation,
        version=version,
        checkpoint_id=user.checkpoint_id,
        weights=user.weights_K.tolist(),
        pairs_received=effect.received,
        pairs_stored=effect.stored,
        pairs_total=support.total,
        report=solution.report,
        replayed=False,
        cause=effect.cause,
        pairs_deleted=effect.deleted,
        carried=sum(each.carried for each in support.evidence),
        left_out=support.left_out,
        exact=effect.back_to == to_bytes(user.weights_K) if isinstance(change, Rollback) else None,
        stored_by_source=dict(evidence.stored_by_source) or None,
    )
    if idempotency is not None:
        keep_answer(connection, tenant_id, user.incarnation, idempotency, outcome, now + policy.idempotency_ttl)
    return outcome, user


def _apply(connection: Connection, change: Change, row: Row[Any], evidence: UserEvidence, now: datetime) -> _Effect:
    match change:
        case Append(items, cause):
            return _Effect(cause, received=len(items), stored=evidence.append(items, now))
        case Replace(items):
            stored, deleted = evidence.replace(items, now)
            return _Effect("replace", received=len(items), stored=stored, deleted=deleted)
        case Delete(evidence_ids):
            return _Effect("delete", deleted=evidence.delete(evidence_ids), forgets=True)
        case Rollback(version):
            serials, weights = find_version(connection, row, version, evidence.live)
            stored, deleted = evidence.restore(serials)
            back_to = None if weights is None else to_bytes(weights)
            return _Effect("rollback", stored=stored, deleted=deleted, back_to=back_to)
        case Reset(forget):
            deleted = evidence.forget() if forget else evidence.restore(Serials())[1]
            return _Effect("forget" if forget else "reset", deleted=deleted, forgets=forget)


def _prune(connection: Connection, policy: Policy, incarnation: int, version: int, evidence: UserEvidence) -> None:
    """Drop the versions that are too old, and for good the statements that counted in them and count in none left."""
    oldest = version - policy.history_versions
    dropped = drop_versions(connection, incarnation, oldest) if oldest > 1 else None
    if not policy.history_versions:
        if evidence.packed() is not None:
            evidence.sweep(None)
    elif dropped:
        evidence.sweep(dropped - evidence.live)


def _lock(connection: Connection, tenant_id: str, user_id: str) -> Row[Any]:
    row = connection.execute(_LOCKED, {"tenant_id": tenant_id, "user_id": user_id}).one_or_none()
    if row is None:
        raise NotFound("No such user: nobody has adapted under this id, so there is nothing to change.")
    return row


def _lock_or_make(connection: Connection, tenant_id: str, user_id: str, view: HeadsView, now: datetime) -> Row[Any]:
    """The user's row, made if missing and allowed, locked until the transaction ends."""
    name = {"tenant_id": tenant_id, "user_id": user_id}
    blank = {
        **name,
        "version": 0,
        "checkpoint_id": view.checkpoint_id,
        "heads_id": view.heads_id,
        "weights": b"",
        "factor": None,
        "pairs": 0,
        "created_at": now,
        "updated_at": now,
    }
    # Most users are there: making them is tried only where the lock finds nobody.
    for _ in range(_LOCK_ATTEMPTS):
        row = connection.execute(_LOCKED, name).one_or_none()
        if row is not None:
            if row.version == 0:  # made just now
                check_max_users(connection, tenant_id)
            return row
        connection.execute(_MAKE[connection.dialect.name], blank)
    raise Unavailable("database: the user is being erased again and again", RETRY_AFTER_S)


def _write(connection: Connection, user: StoredUser, cause: str, evidence: UserEvidence) -> None:
    connection.execute(
        _WRITE,
        {
            "life": user.incarnation,
            "version": user.version,
            "checkpoint_id": user.checkpoint_id,
            "heads_id": user.heads_id,
            "weights": to_bytes(user.weights_K),
            "factor": None if user.factor is None else to_bytes(user.factor),
            "pairs": user.pairs,
            "updated_at": user.updated_at,
            "cause": None if cause == ADAPT else cause,
            "live": evidence.packed(),
            "next_serial": evidence.next_serial,
            "carried": None,
        },
    )


def to_user(row: Row[Any]) -> StoredUser:
    """A row of `users` as a value."""
    return StoredUser(
        tenant_id=row.tenant_id,
        user_id=row.user_id,
        incarnation=row.incarnation,
        version=row.version,
        checkpoint_id=row.checkpoint_id,
        heads_id=row.heads_id,
        weights_K=from_bytes(row.weights),
        factor=None if row.factor is None else from_bytes(row.factor),
        pairs=row.pairs,
        created_at=row.created_at,
        updated_at=row.updated_at,
        carried=row.carried,
    )


def require_finite(what: str, *values: Vector | float | None) -> None:
    """Refuse numbers that are not finite.

    Raises:
        EngineError: Some are not.
    """
    for value in values:
        if value is None:
            continue
        if not (math.isfinite(value) if isinstance(value, float) else bool(np.isfinite(value).all())):
            raise EngineError(f"{what} is not finite: nothing was stored")
