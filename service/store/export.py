"""Looking at what is stored of a user: page by page, or all of it as of one moment."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, bindparam, select

from service.store.changes import to_user
from service.store.history import versions_page
from service.store.records import KeptAnswer, StoredEvidence, UserExport
from service.store.support import COLUMNS, to_evidence
from service.store.tables import IdempotencyRow, PairRow, PairSourceRow

_OF_USER = PairRow.incarnation == bindparam("incarnation")
_IDS = (
    select(PairRow.pair_id)
    .where(_OF_USER, PairRow.pair_id > bindparam("after"))
    .group_by(PairRow.pair_id)
    .order_by(PairRow.pair_id)
    .limit(bindparam("limit"))
    .subquery()
)
_PAGE = (
    select(*COLUMNS)
    .where(_OF_USER, PairRow.pair_id.in_(select(_IDS.c.pair_id)))
    .order_by(PairRow.pair_id, PairRow.heads_id)
)
_PAGE_SOURCES = select(PairSourceRow.pair_id, PairSourceRow.payload).where(
    PairSourceRow.incarnation == bindparam("incarnation"), PairSourceRow.pair_id.in_(select(_IDS.c.pair_id))
)
_ALL = select(*COLUMNS).where(_OF_USER).order_by(PairRow.pair_id, PairRow.heads_id)
_SOURCES = (
    select(PairSourceRow.pair_id, PairSourceRow.payload)
    .where(PairSourceRow.incarnation == bindparam("incarnation"))
    .order_by(PairSourceRow.pair_id)
)
_ANSWERS = (
    select(IdempotencyRow.key, IdempotencyRow.answer, IdempotencyRow.expires_at)
    .where(IdempotencyRow.incarnation == bindparam("incarnation"))
    .order_by(IdempotencyRow.key)
)
_EVERY_VERSION = 2**31 - 1


def evidence_page(
    connection: Connection, user: Row[Any], after: str | None, limit: int
) -> list[tuple[StoredEvidence, bytes | None]]:
    """See `UserRepository.evidence`."""
    asked = {"incarnation": user.incarnation, "after": after or "", "limit": limit}
    page: dict[str, StoredEvidence] = {}
    for row in connection.execute(_PAGE, asked):
        if row.pair_id not in page or row.heads_id == user.heads_id:
            page[row.pair_id] = to_evidence(row)
    retained = {row.pair_id: row.payload for row in connection.execute(_PAGE_SOURCES, asked)}
    return [(each, retained.get(each.evidence_id)) for each in page.values()]


def export_user(connection: Connection, user: Row[Any]) -> UserExport:
    """See `UserRepository.export`."""
    asked = {"incarnation": user.incarnation}
    return UserExport(
        user=to_user(user),
        evidence=[to_evidence(row) for row in connection.execute(_ALL, asked)],
        retained={row.pair_id: row.payload for row in connection.execute(_SOURCES, asked)},
        versions=versions_page(connection, user, None, _EVERY_VERSION),
        answers=[KeptAnswer(*row) for row in connection.execute(_ANSWERS, asked)],
    )
