"""Answers kept under the caller's key, so that a request sent again is answered, not done, again."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from service.errors import InvalidInput
from service.store.records import ChangeOutcome, Idempotency
from service.store.tables import IdempotencyRow

_OF_USER = IdempotencyRow.incarnation == bindparam("incarnation")
_EXPIRED = IdempotencyRow.expires_at <= bindparam("now")
_PURGE_USER = delete(IdempotencyRow).where(_OF_USER, _EXPIRED)
_PURGE = delete(IdempotencyRow).where(_EXPIRED)
_KEPT = select(IdempotencyRow.body_hash, IdempotencyRow.answer).where(_OF_USER, IdempotencyRow.key == bindparam("key"))
_KEEP = insert(IdempotencyRow)
_ALL = select(IdempotencyRow.key, IdempotencyRow.answer).where(_OF_USER)
_WRITE = (
    update(IdempotencyRow)
    .where(IdempotencyRow.incarnation == bindparam("life"), IdempotencyRow.key == bindparam("name"))
    .values(answer=bindparam("shorter"))
)


def kept_answer(
    connection: Connection, incarnation: int, idempotency: Idempotency, now: datetime
) -> ChangeOutcome | None:
    """The answer kept under this key; the user's expired ones are deleted on the way.

    Raises:
        InvalidInput: The key was used with another body.
    """
    connection.execute(_PURGE_USER, {"incarnation": incarnation, "now": now})
    row = connection.execute(_KEPT, {"incarnation": incarnation, "key": idempotency.key}).one_or_none()
    if row is None:
        return None
    if row.body_hash != idempotency.body_hash:
        raise InvalidInput.single(
            "Idempotency-Key", "this key was used with another body: send a new key with a new request"
        )
    return ChangeOutcome.from_json(row.answer).as_replay()


def keep_answer(
    connection: Connection,
    tenant_id: str,
    incarnation: int,
    idempotency: Idempotency,
    outcome: ChangeOutcome,
    expires_at: datetime,
) -> None:
    """Keep `outcome` under the key until `expires_at`."""
    connection.execute(
        _KEEP,
        {
            "incarnation": incarnation,
            "key": idempotency.key,
            "tenant_id": tenant_id,
            "body_hash": idempotency.body_hash,
            "answer": outcome.to_json(),
            "expires_at": expires_at,
        },
    )


def forget_answers(connection: Connection, incarnation: int) -> None:
    """Take out of the user's kept answers what was computed from statements that are deleted now.

    They still keep a request that is sent again from being done again.
    """
    shorter = [
        {"life": incarnation, "name": key, "shorter": ChangeOutcome.from_json(answer).forgotten().to_json()}
        for key, answer in connection.execute(_ALL, {"incarnation": incarnation})
    ]
    if shorter:
        connection.execute(_WRITE, shorter)


def purge_expired(connection: Connection, now: datetime) -> int:
    """Delete the expired answers of all users, and return how many they were."""
    return connection.execute(_PURGE, {"now": now}).rowcount
