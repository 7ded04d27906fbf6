"""The support set: which of a user's statements a solve sees, from where it looks.

A statement stays under the heads that it was measured with. A view sees it as measured with the view's own heads, else
as measured with heads that a map leads from, the best map first, else not at all.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sqlalchemy import Connection, Select, bindparam, case, exists, func, or_, select, true

from service.store.records import HeadsView, Matrix, StoredEvidence, Vector
from service.store.tables import PairRow
from service.store.vectors import from_bytes

_OF_USER = PairRow.incarnation == bindparam("incarnation")
_LIVE = PairRow.live.is_(True)

COLUMNS: tuple[Any, ...] = (
    PairRow.pair_id,
    PairRow.heads_id,
    PairRow.content_key,
    PairRow.diff,
    PairRow.grade,
    PairRow.event_time,
    PairRow.kind,
    PairRow.weight,
    PairRow.tilt,
    PairRow.group_key,
    PairRow.ranks,
    PairRow.source,
    PairRow.live,
)


def _newest(heads: Any) -> Select[Any]:
    return (
        select(*COLUMNS)
        .where(_OF_USER, _LIVE, heads)
        .order_by(PairRow.event_time.desc(), PairRow.pair_id.desc())
        .limit(bindparam("limit"))
    )


# Whether there is anything under other heads is asked by two looks into an index, in the same statement: for almost
# all users there is not, and the rest of the questions need not be put.
_ELSEWHERE = select(
    or_(
        exists().where(_OF_USER, PairRow.heads_id < bindparam("heads_id")),
        exists().where(_OF_USER, PairRow.heads_id > bindparam("heads_id")),
    ).label("elsewhere")
).subquery()
_HERE = _newest(PairRow.heads_id == bindparam("heads_id")).subquery()
_SUPPORT = (
    select(_HERE, _ELSEWHERE.c.elsewhere)
    .select_from(_ELSEWHERE.outerjoin(_HERE, true()))
    .order_by(_HERE.c.event_time.desc(), _HERE.c.pair_id.desc())
)
_UNDER = _newest(PairRow.heads_id == bindparam("heads_id"))
_COUNT = select(func.count()).select_from(PairRow).where(_OF_USER, _LIVE, PairRow.heads_id == bindparam("heads_id"))
_SEEN = (
    select(func.max(case((PairRow.heads_id.in_(bindparam("heads", expanding=True)), 1), else_=0)).label("seen"))
    .where(_OF_USER, _LIVE)
    .group_by(PairRow.pair_id)
    .subquery()
)
_COUNTS = select(func.count(), func.sum(_SEEN.c.seen)).select_from(_SEEN)


@dataclass(frozen=True, slots=True, eq=False)
class SupportSet:
    """What a solve sees.

    Attributes:
        evidence: The newest statements, newest first; of one time, those with the greatest ids first.
        total: Live statements that the view can use, those beyond the limit included.
        left_out: Live statements that it cannot use.
    """

    evidence: list[StoredEvidence]
    total: int
    left_out: int


def support_set(connection: Connection, incarnation: int, view: HeadsView, limit: int) -> SupportSet:
    """The newest `limit` live statements that `view` can use.

    It is a function of the set of rows: neither their order nor that of the calls that stored them matters.
    """
    asked = {"incarnation": incarnation, "heads_id": view.heads_id, "limit": limit}
    rows = connection.execute(_SUPPORT, asked).all()
    here = [to_evidence(row[:-1]) for row in rows if row[0] is not None]
    if not rows[0].elsewhere:
        total = len(here)
        if total == limit:
            total = connection.execute(_COUNT, {"incarnation": incarnation, "heads_id": view.heads_id}).scalar_one()
        return SupportSet(here, total, 0)
    # Statements are told apart by id. One that is among the newest of all is among the newest under its heads, too.
    by_id = {each.evidence_id: each for each in here}
    for heads_id, map_KK in view.maps.items():
        if heads_id == view.heads_id:
            continue
        for row in connection.execute(_UNDER, asked | {"heads_id": heads_id}):
            if row.pair_id not in by_id:
                by_id[row.pair_id] = carry(to_evidence(row), map_KK)
    newest = sorted(by_id.values(), key=lambda each: (each.event_time, each.evidence_id.encode()), reverse=True)
    seen = {"incarnation": incarnation, "heads": [view.heads_id, *view.maps]}
    live, usable = connection.execute(_COUNTS, seen).one()
    return SupportSet(newest[:limit], int(usable or 0), int(live) - int(usable or 0))


def to_evidence(row: Sequence[Any]) -> StoredEvidence:
    """A row of `COLUMNS` as a value."""
    # By place, not by name: a support set has up to thousands of rows.
    evidence_id, heads_id, content_key, diff, grade, time, kind, weight, tilt, group, packed_ranks, source, live = row
    base_rewards = from_bytes(diff)
    ranks = None
    if packed_ranks is not None:
        ranks = unpack_ranks(packed_ranks)
        base_rewards = base_rewards.reshape(len(ranks), -1)
    return StoredEvidence(
        evidence_id=evidence_id,
        content_key=content_key,
        kind=kind or "pair",
        base_rewards=base_rewards,
        grade=grade,
        ranks=ranks,
        group=group,
        weight=1.0 if weight is None else weight,
        tilt=0.0 if tilt is None else tilt,
        source=source,
        event_time=time,
        heads_id=heads_id,
        live=live,
    )


def carry(evidence: StoredEvidence, map_KK: Matrix) -> StoredEvidence:
    """The statement as the heads that `map_KK` [K, K_from] leads to would have measured it."""
    carried: Vector = np.asarray(evidence.base_rewards @ map_KK.T)
    return replace(evidence, base_rewards=carried, carried=True)


def pack_ranks(ranks: Sequence[int]) -> bytes:
    """Places of a ranking as bytes: little-endian, two each."""
    return struct.pack(f"<{len(ranks)}H", *ranks)


def unpack_ranks(packed: bytes) -> tuple[int, ...]:
    """The inverse of `pack_ranks`."""
    return struct.unpack(f"<{len(packed) // 2}H", packed)
