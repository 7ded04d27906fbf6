"""A user's statements: which are new, which contradict, which count, and which are deleted for good.

They are a set keyed by their ids. An id stands for one content under all heads for as long as a row of it exists, and
has one serial and one time under all of them. What does not count any more may be brought back by a rollback, or by
being said again; an id that comes to stand for something else takes the earlier statement's place for good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from service.errors import FieldIssue, InvalidInput, NotFound
from service.store.records import NewEvidence
from service.store.serials import Serials
from service.store.support import pack_ranks
from service.store.tables import PairRow, PairSourceRow, VersionRow
from service.store.vectors import to_bytes

# Both databases limit the parameters of one statement; the smallest such limit is SQLite's old 999.
_IDS_PER_STATEMENT = 900
_RANGES_PER_STATEMENT = 200
# An error names no more ids than somebody reads.
_NAMED = 20

_OF_USER = PairRow.incarnation == bindparam("life")
_SOURCE_OF_USER = PairSourceRow.incarnation == bindparam("life")
_AMONG = PairRow.pair_id.in_(bindparam("ids", expanding=True))
_KNOWN_AS: tuple[Any, ...] = (
    PairRow.pair_id,
    PairRow.content_key,
    PairRow.heads_id,
    PairRow.serial,
    PairRow.live,
    PairRow.event_time,
)
_KNOWN = select(*_KNOWN_AS).where(_OF_USER, _AMONG).order_by(PairRow.pair_id, PairRow.heads_id)
_MARKED_AS: tuple[Any, ...] = (PairRow.pair_id, PairRow.serial)
_STORE = insert(PairRow)
_REVIVE = (
    update(PairRow).where(_OF_USER, PairRow.pair_id == bindparam("id")).values(live=True, event_time=bindparam("time"))
)
_RETIME = update(PairRow).where(_OF_USER, PairRow.pair_id == bindparam("id")).values(event_time=bindparam("time"))
_DELETE = delete(PairRow).where(_OF_USER, _AMONG)
_DELETE_ALL = delete(PairRow).where(_OF_USER)
_DELETE_SOURCES = delete(PairSourceRow).where(
    _SOURCE_OF_USER, PairSourceRow.pair_id.in_(bindparam("ids", expanding=True))
)
_DELETE_ALL_SOURCES = delete(PairSourceRow).where(_SOURCE_OF_USER)
_STRAYS = select(PairRow.pair_id).where(_OF_USER, PairRow.serial == 0, PairRow.live.is_(True)).limit(1)
_LIVE_COUNT = select(func.count(PairRow.pair_id.distinct())).where(_OF_USER, PairRow.live.is_(True))
_VERSIONS = select(VersionRow.version, VersionRow.live).where(VersionRow.incarnation == bindparam("life"))
_WRITE_VERSION = (
    update(VersionRow)
    .where(VersionRow.incarnation == bindparam("life"), VersionRow.version == bindparam("number"))
    .values(live=bindparam("serials"))
)


def _retain(dialect: Any) -> Any:
    statement = dialect.insert(PairSourceRow)
    return statement.on_conflict_do_update(
        index_elements=["incarnation", "pair_id"], set_={"payload": statement.excluded.payload}
    )


_RETAIN = {"postgresql": _retain(postgresql), "sqlite": _retain(sqlite)}


class UserEvidence:
    """The statements of one user whose row this transaction has locked, as they are changed in it.

    Attributes:
        live: The serials of those that count.
        next_serial: The next one to give out.
    """

    def __init__(
        self,
        connection: Connection,
        tenant_id: str,
        incarnation: int,
        heads_id: str,
        live: bytes | None,
        next_serial: int,
    ) -> None:
        self._connection = connection
        self._tenant_id = tenant_id
        # Not by the name of the column: an UPDATE takes those for what it is to set.
        self._user: dict[str, Any] = {"life": incarnation}
        self._heads_id = heads_id
        self.next_serial = next_serial
        self.live = Serials.below(next_serial) if live is None else Serials.unpack(live)
        # Statements that did not count before and do now, of those that were read from feedback.
        self.stored_by_source: Counter[str] = Counter()
        if live is not None and 0 not in self.live and connection.execute(_STRAYS, self._user).first() is not None:
            # The version before stored them, which gives out no serials, after earlier ones had ceased to count.
            self.live |= self._number(PairRow.live.is_(True))

    def packed(self) -> bytes | None:
        """What the user's row keeps of `live`: None where everything counts."""
        return None if self.live == Serials.below(self.next_serial) else self.live.pack()

    def append(self, items: Sequence[NewEvidence], now: datetime) -> int:
        """Let `items` count as well, and return how many did not before.

        Raises:
            InvalidInput: Ids that already stand for other content, here or in the store: every one of them.
        """
        return self._store(items, now, replaces=False)[0]

    def replace(self, items: Sequence[NewEvidence], now: datetime) -> tuple[int, int]:
        """Let `items` count and nothing else; return how many did not before, and how many do not any more.

        What counts before and after keeps its time, unless the item says another.

        Raises:
            InvalidInput: Ids that stand for two contents among `items`.
        """
        return self._store(items, now, replaces=True)

    def delete(self, evidence_ids: Sequence[str]) -> int:
        """Delete these for good, under all heads, and return how many they were.

        Raises:
            NotFound: Some are not stored; the message names them. Nothing was deleted.
        """
        ids = list(dict.fromkeys(evidence_ids))
        known = self._by_id(ids)
        unknown = [each for each in ids if each not in known]
        if unknown:
            more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
            raise NotFound(
                f"Nothing is stored under these ids: {', '.join(unknown[:_NAMED])}{more}. Nothing was deleted."
            )
        self._delete(ids)
        return len(ids)

    def restore(self, serials: Serials) -> tuple[int, int]:
        """Let those of `serials` count that still exist; return how many did not before, and do not any more."""
        back = len({row.pair_id for row in self._mark(serials - self.live, live=True)})
        gone = self._end(self.live - serials)
        self.live |= serials
        return back, gone

    def forget(self) -> int:
        """Delete all of them for good, and return how many counted."""
        count = self._connection.execute(_LIVE_COUNT, self._user).scalar_one()
        self._connection.execute(_DELETE_ALL, self._user)
        self._connection.execute(_DELETE_ALL_SOURCES, self._user)
        self.live = Serials.below(self.next_serial)
        return int(count)

    def sweep(self, serials: Serials | None) -> None:
        """Delete for good those of `serials` that do not count, or with None all that do not."""
        if serials is None:
            self._sweep([PairRow.live.is_(False)])
            self.live = Serials.below(self.next_serial)
        else:
            self._sweep([and_(PairRow.live.is_(False), among) for among in _within(serials)])

    def _sweep(self, conditions: Iterable[ColumnElement[bool]]) -> None:
        for condition in conditions:
            statement = delete(PairRow).where(_OF_USER, condition).returning(PairRow.pair_id)
            self._delete_sources(sorted(set(self._connection.execute(statement, self._user).scalars())))

    def _store(self, items: Sequence[NewEvidence], now: datetime, *, replaces: bool) -> tuple[int, int]:
        ids = list(dict.fromkeys(item.evidence_id for item in items))
        known = self._by_id(ids)
        if any(row.serial == 0 and (replaces or not row.live) for rows in known.values() for row in rows):
            # Of the statements from before there were serials some will count and others will not: each needs its own.
            self._part()
            known = self._by_id(ids)
        said = _without_contradictions(items, {} if replaces else known)
        outdated = [each for each, rows in known.items() if rows[0].content_key != said[each].content_key]
        gone = sum(known[each][0].live for each in outdated)
        self._delete(outdated)
        for evidence_id in outdated:
            del known[evidence_id]
        if replaces:
            gone += self._end(self.live - Serials.of(rows[0].serial for rows in known.values()))

        new, moved, revived, retained, counted, stored = [], [], [], [], [], 0
        for evidence_id, item in said.items():
            rows = known.get(evidence_id, [])
            live = bool(rows) and rows[0].live
            time = item.event_time or now
            if not rows:
                serial = self.next_serial
                self.next_serial += 1
            else:
                serial = rows[0].serial
                if not live:
                    revived.append({"id": evidence_id, "time": time})
                elif replaces and item.event_time is not None:
                    moved.append({"id": evidence_id, "time": time})
                else:
                    time = rows[0].event_time
            here = any(row.heads_id == self._heads_id for row in rows)
            if not here:
                new.append(self._row(item, serial, time))
            if not (here and live):
                stored += 1
                if item.source is not None:
                    self.stored_by_source[item.source] += 1
                if item.retained is not None:
                    retained.append({"pair_id": evidence_id, "payload": item.retained})
            counted.append(serial)
        self.live |= Serials.of(counted)
        self._execute_many(_RETIME, moved, self._user)
        self._execute_many(_REVIVE, revived, self._user)
        self._execute_many(_STORE, new, {})
        source = {"incarnation": self._user["life"], "tenant_id": self._tenant_id}
        self._execute_many(_RETAIN[self._connection.dialect.name], retained, source)
        return stored, gone

    def _row(self, item: NewEvidence, serial: int, time: datetime) -> dict[str, Any]:
        return {
            "incarnation": self._user["life"],
            "pair_id": item.evidence_id,
            "heads_id": self._heads_id,
            "tenant_id": self._tenant_id,
            "content_key": item.content_key,
            "diff": to_bytes(item.base_rewards),
            "grade": item.grade,
            "event_time": time,
            "kind": None if item.kind == "pair" else item.kind,
            "weight": None if item.weight == 1.0 else item.weight,
            "tilt": None if item.tilt == 0.0 else item.tilt,
            "group_key": item.group,
            "ranks": None if item.ranks is None else pack_ranks(item.ranks),
            "source": item.source,
            "serial": serial,
            "live": True,
        }

    def _by_id(self, ids: Sequence[str]) -> dict[str, list[Row[Any]]]:
        """The rows of each of `ids` that is stored: one for each set of heads that it was measured with."""
        found: dict[str, list[Row[Any]]] = {}
        for some in _parts(ids, _IDS_PER_STATEMENT):
            for row in self._connection.execute(_KNOWN, self._user | {"ids": some}):
                found.setdefault(row.pair_id, []).append(row)
        return found

    def _part(self) -> None:
        """Give each statement that shares serial 0 its own, in every version in which they counted."""
        own = self._number(true())
        if 0 in self.live:
            self.live |= own
        for version, packed in self._connection.execute(_VERSIONS, self._user).all():
            live = Serials.unpack(packed)
            if 0 in live:
                wider = {"number": version, "serials": (live | own).pack()}
                self._connection.execute(_WRITE_VERSION, self._user | wider)

    def _number(self, among: ColumnElement[bool]) -> Serials:
        """Give statements of serial 0 serials of their own, and return these."""
        shared = and_(_OF_USER, PairRow.serial == 0, among)
        place = func.dense_rank().over(order_by=PairRow.pair_id).label("place")
        placed = select(PairRow.pair_id, place).where(shared).subquery()
        statement = (
            update(PairRow)
            .where(shared, PairRow.pair_id == placed.c.pair_id)
            .values(serial=bindparam("base") + placed.c.place - 1)
            .returning(PairRow.serial)
        )
        given = Serials.of(self._connection.execute(statement, self._user | {"base": self.next_serial}).scalars())
        if given:
            self.next_serial = given.ranges[-1][1]
        return given

    def _end(self, serials: Serials) -> int:
        """Let those of `serials` not count any more, and return how many did."""
        ended = self._mark(serials, live=False)
        # Where nothing has serial 0 it stays, for what the version before may yet store; nobody needs to look for it.
        self.live -= serials if any(row.serial == 0 for row in ended) else serials - Serials.below(1)
        return len({row.pair_id for row in ended})

    def _mark(self, serials: Serials, *, live: bool) -> list[Row[Any]]:
        """Note in the rows of `serials` that did not whether they count, and return their ids and serials."""
        marked: list[Row[Any]] = []
        for among in _within(serials):
            statement = (
                update(PairRow)
                .where(_OF_USER, PairRow.live.is_(not live), among)
                .values(live=live)
                .returning(*_MARKED_AS)
            )
            marked += self._connection.execute(statement, self._user)
        return marked

    def _delete(self, ids: Sequence[str]) -> None:
        for some in _parts(ids, _IDS_PER_STATEMENT):
            self._connection.execute(_DELETE, self._user | {"ids": some})
        self._delete_sources(ids)

    def _delete_sources(self, ids: Sequence[str]) -> None:
        for some in _parts(ids, _IDS_PER_STATEMENT):
            self._connection.execute(_DELETE_SOURCES, self._user | {"ids": some})

    def _execute_many(self, statement: Any, values: Sequence[dict[str, Any]], common: dict[str, Any]) -> None:
        if values:
            self._connection.execute(statement, [common | each for each in values])


def _without_contradictions(
    items: Sequence[NewEvidence], known: Mapping[str, Sequence[Row[Any]]]
) -> dict[str, NewEvidence]:
    """The first item of each id.

    Raises:
        InvalidInput: Ids that stand for two contents, among the items or by what counts already.
    """
    stands_for = {each: rows[0].content_key for each, rows in known.items() if rows[0].live}
    said: dict[str, NewEvidence] = {}
    issues = []
    for i, item in enumerate(items):
        if stands_for.setdefault(item.evidence_id, item.content_key) != item.content_key:
            message = f"this id already stands for another {item.kind}: give each {item.kind} its own id"
            issues.append(FieldIssue(f"{item.field or f'pairs[{i}]'}.id", message))
        said.setdefault(item.evidence_id, item)
    if issues:
        raise InvalidInput(issues)
    return said


def _parts(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _within(serials: Serials) -> Iterator[ColumnElement[bool]]:
    """Conditions that together are met by the rows of `serials`, each short enough for one statement."""
    for start in range(0, len(serials.ranges), _RANGES_PER_STATEMENT):
        some = serials.ranges[start : start + _RANGES_PER_STATEMENT]
        yield or_(*(and_(PairRow.serial >= first, PairRow.serial < end) for first, end in some))
