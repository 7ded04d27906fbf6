"""The versions of a user that are kept: written when the next one takes their place, looked at, dropped.

The present version is the user's row alone, so a user who adapted once has no history to store.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from service.errors import Conflict, FieldIssue
from service.store.records import StoredVersion, Vector
from service.store.serials import Serials
from service.store.tables import UserRow, VersionRow
from service.store.vectors import from_bytes

ADAPT = "adapt"

_OF_USER = VersionRow.incarnation == bindparam("incarnation")
# Copied inside the database: what is kept is what was committed.
_KEEP = insert(VersionRow).from_select(
    [
        "incarnation",
        "version",
        "tenant_id",
        "cause",
        "checkpoint_id",
        "heads_id",
        "weights",
        "pairs",
        "live",
        "created_at",
    ],
    select(
        UserRow.incarnation,
        UserRow.version,
        UserRow.tenant_id,
        UserRow.cause,
        UserRow.checkpoint_id,
        UserRow.heads_id,
        UserRow.weights,
        UserRow.pairs,
        bindparam("serials", type_=VersionRow.live.type),
        UserRow.updated_at,
    ).where(UserRow.incarnation == bindparam("incarnation")),
)
_DROP = delete(VersionRow).where(_OF_USER, VersionRow.version < bindparam("oldest")).returning(VersionRow.live)
_LIVE = select(VersionRow.live).where(_OF_USER)
_ONE = select(VersionRow.weights, VersionRow.live).where(_OF_USER, VersionRow.version == bindparam("version"))
_OLDEST = select(func.min(VersionRow.version)).where(_OF_USER)
_FORGET_WEIGHTS = (
    update(VersionRow)
    .where(VersionRow.incarnation == bindparam("life"), VersionRow.weights.is_not(None))
    .values(weights=None)
)
_PAGE = (
    select(VersionRow.__table__)
    .where(_OF_USER, VersionRow.version < bindparam("before"))
    .order_by(VersionRow.version.desc())
    .limit(bindparam("limit"))
)


def keep_version(connection: Connection, incarnation: int, live: Serials) -> None:
    """Keep the user's present version, in which the statements of `live` counted, before it is written over."""
    connection.execute(_KEEP, {"incarnation": incarnation, "serials": live.pack()})


def drop_versions(connection: Connection, incarnation: int, oldest: int) -> Serials:
    """Drop the versions before `oldest`, and return the serials of what counted in them and in none that is kept."""
    dropped = Serials()
    for packed in connection.execute(_DROP, {"incarnation": incarnation, "oldest": oldest}).scalars():
        dropped |= Serials.unpack(packed)
    if dropped:
        for packed in connection.execute(_LIVE, {"incarnation": incarnation}).scalars():
            dropped -= Serials.unpack(packed)
    return dropped


def find_version(connection: Connection, user: Row[Any], version: int, live: Serials) -> tuple[Serials, Vector | None]:
    """What counted in a version, and its weights [K], None where they are not kept.

    Args:
        connection: With the user's row locked.
        user: That row.
        version: The version asked for.
        live: What counts in the present one.

    Raises:
        Conflict: It is not kept; the message names those that are.
    """
    if version == user.version:
        return live, from_bytes(user.weights)
    asked = {"incarnation": user.incarnation}
    row = connection.execute(_ONE, asked | {"version": version}).one_or_none()
    if row is None:
        oldest = connection.execute(_OLDEST, asked).scalar_one()
        kept = (
            f"versions {oldest} to {user.version} are kept"
            if oldest and oldest < user.version
            else f"only version {user.version} is kept"
        )
        message = f"this version is not kept: {kept}"
        raise Conflict(f"version: {message}", [FieldIssue("version", message)])
    return Serials.unpack(row.live), None if row.weights is None else from_bytes(row.weights)


def forget_weights(connection: Connection, incarnation: int) -> None:
    """Delete the weights of earlier versions: they were made from statements that are deleted now."""
    connection.execute(_FORGET_WEIGHTS, {"life": incarnation})


def versions_page(connection: Connection, user: Row[Any], before: int | None, limit: int) -> list[StoredVersion]:
    """Up to `limit` versions, the newest first, beginning behind `before`: with the present one if that is None."""
    page = []
    if before is None or before > user.version:
        page.append(_to_version(user, user.updated_at, current=True))
        before = user.version
    asked = {"incarnation": user.incarnation, "before": before, "limit": limit}
    page += [_to_version(row, row.created_at, current=False) for row in connection.execute(_PAGE, asked)]
    return page[:limit]


def _to_version(row: Row[Any], created_at: Any, *, current: bool) -> StoredVersion:
    return StoredVersion(
        version=row.version,
        cause=row.cause or ADAPT,
        checkpoint_id=row.checkpoint_id,
        heads_id=row.heads_id,
        weights_K=None if row.weights is None else from_bytes(row.weights),
        pairs=row.pairs,
        created_at=created_at,
        current=current,
    )
