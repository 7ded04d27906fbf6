"""Which checkpoints serve: one row that all replicas follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, select, update
from sqlalchemy.dialects import postgresql, sqlite

from service.errors import Conflict
from service.store.database import Database
from service.store.records import ServingRow
from service.store.tables import ServingRecord

_GET = select(ServingRecord.__table__)
_LOCKED = _GET.with_for_update()
_MAKE = {
    dialect: insert(ServingRecord).on_conflict_do_nothing(index_elements=["id"])
    for dialect, insert in (("postgresql", postgresql.insert), ("sqlite", sqlite.insert))
}
_WRITE = update(ServingRecord)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class ServingRepository:
    """The checkpoints that serve. Each change is one transaction with the row locked, so changes follow one another.

    Every method raises `Unavailable` when the database does not answer in time.
    """

    def __init__(self, database: Database, *, clock: Callable[[], datetime] = _utc_now) -> None:
        self._database = database
        self._clock = clock

    def get(self) -> ServingRow | None:
        """What serves now; None where nothing was ever activated."""
        with self._database.reading() as connection:
            row = connection.execute(_GET).one_or_none()
        return None if row is None else _to_serving(row)

    def begin(self, checkpoint_id: str) -> ServingRow:
        """What serves now; `checkpoint_id` where nothing was ever activated."""
        found = self.get()
        return found if found is not None else self._database.transaction(lambda c: self._locked(c, checkpoint_id))

    def activate(self, checkpoint_id: str) -> ServingRow:
        """Let `checkpoint_id` serve. Nothing changes where it does already; as a shadow it ends."""

        def change(row: ServingRow) -> ServingRow:
            if row.active == checkpoint_id:
                return row
            shadow = None if row.shadow == checkpoint_id else row.shadow
            return replace(row, active=checkpoint_id, previous=row.active, shadow=shadow)

        return self._change(change, checkpoint_id)

    def rollback(self) -> ServingRow:
        """Let the checkpoint serve that did before, and remember the present one as the one before.

        Raises:
            Conflict: There was none before.
        """

        def change(row: ServingRow) -> ServingRow:
            if row.previous is None:
                raise Conflict("No checkpoint served before this one: activate the one that you want by its id.")
            shadow = None if row.shadow == row.previous else row.shadow
            return replace(row, active=row.previous, previous=row.active, shadow=shadow)

        return self._change(change)

    def shadow(self, checkpoint_id: str | None) -> ServingRow:
        """Let `checkpoint_id` compute beside the active one, or with None no checkpoint.

        Raises:
            Conflict: It is the active one, or none is.
        """

        def change(row: ServingRow) -> ServingRow:
            if row.active == checkpoint_id:
                raise Conflict("This checkpoint is active: name another one as its shadow.")
            return replace(row, shadow=checkpoint_id)

        return self._change(change)

    def _change(self, change: Callable[[ServingRow], ServingRow], first: str | None = None) -> ServingRow:
        def work(connection: Connection) -> ServingRow:
            row = self._locked(connection, first)
            wanted = change(row)
            if wanted == row:
                return row
            wanted = replace(wanted, generation=row.generation + 1, changed_at=self._clock())
            connection.execute(
                _WRITE,
                {
                    "active": wanted.active,
                    "previous": wanted.previous,
                    "shadow": wanted.shadow,
                    "generation": wanted.generation,
                    "changed_at": wanted.changed_at,
                },
            )
            return wanted

        return self._database.transaction(work)

    def _locked(self, connection: Connection, first: str | None) -> ServingRow:
        """The row, locked; where there is none it is made with `first` active.

        Raises:
            Conflict: There is none, and `first` is None.
        """
        if first is not None:
            blank = {"id": 1, "active": first, "previous": None, "shadow": None, "generation": 1}
            statement = _MAKE[connection.dialect.name]
            connection.execute(statement, blank | {"changed_at": self._clock()})
        row = connection.execute(_LOCKED).one_or_none()
        if row is None:
            raise Conflict("No checkpoint was ever activated: activate one first.")
        return _to_serving(row)


def _to_serving(row: Row[Any]) -> ServingRow:
    return ServingRow(row.active, row.previous, row.shadow, row.generation, row.changed_at)
