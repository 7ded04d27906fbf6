"""Carrying users to another checkpoint, many at a time: who is to be carried, what they said, their new weights.

What a user said does not change, so the version does not either. It guards the write: whoever said something in the
meantime has been solved for already, under the checkpoint that was active then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, bindparam, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from service.store.changes import require_finite, to_user
from service.store.database import Database
from service.store.records import HeadsView, Matrix, StoredEvidence, StoredUser, Vector
from service.store.support import support_set
from service.store.tables import PairRow, UserRow
from service.store.vectors import to_bytes

IntArray = npt.NDArray[np.int64]

_NEXT = (
    select(UserRow.incarnation)
    .where(UserRow.incarnation > bindparam("after"))
    .order_by(UserRow.incarnation)
    .limit(bindparam("size"))
    .subquery()
)
_LAST = select(func.max(_NEXT.c.incarnation))
_COUNT = select(func.count()).select_from(UserRow).where(UserRow.checkpoint_id != bindparam("checkpoint_id"))
_OTHERS = (
    select(UserRow.__table__)
    .where(
        UserRow.incarnation > bindparam("after"),
        UserRow.incarnation <= bindparam("last"),
        UserRow.checkpoint_id != bindparam("checkpoint_id"),
    )
    .order_by(UserRow.incarnation)
)
# A user's rows are joined inside the database: one row comes back for each heads, not one for each statement.
_PLAIN = """
SELECT place, heads_id, count(*), bool_and(plain), string_agg(diff, '' ORDER BY pair_id),
  string_agg(float8send(extract(epoch FROM event_time)::float8), '' ORDER BY pair_id)
FROM (
  SELECT DISTINCT ON (u.place, p.pair_id) u.place, p.pair_id, p.heads_id, p.diff, p.event_time,
    p.kind IS NULL AND p.grade IS NULL AND p.weight IS NULL AND p.tilt IS NULL AS plain
  FROM unnest(%b::bigint[]) WITH ORDINALITY AS u(incarnation, place)
  JOIN pairs p ON p.incarnation = u.incarnation AND p.live AND p.heads_id = ANY(%t::text[])
  ORDER BY u.place, p.pair_id, array_position(%t::text[], p.heads_id)
) AS best
GROUP BY place, heads_id ORDER BY place, heads_id
"""
_WRITE_MANY = """
UPDATE users SET checkpoint_id = %t, heads_id = %t, carried = %t, pairs = new.pairs, weights = new.weights,
  factor = new.factor
FROM unnest(%b::bigint[], %b::bigint[], %b::bigint[], %b::bytea[], %b::bytea[])
  AS new(incarnation, version, pairs, weights, factor)
WHERE users.incarnation = new.incarnation AND users.version = new.version
"""
_WRITE = (
    update(UserRow)
    .where(UserRow.incarnation == bindparam("life"), UserRow.version == bindparam("seen"))
    .values(
        checkpoint_id=bindparam("to_checkpoint"),
        heads_id=bindparam("to_heads"),
        carried=bindparam("how"),
        pairs=bindparam("new_pairs"),
        weights=bindparam("new_weights"),
        factor=bindparam("new_factor"),
    )
)
_SOLVED_ANEW = (
    update(UserRow)
    .where(
        UserRow.incarnation == bindparam("life"),
        UserRow.version == bindparam("seen"),
        UserRow.checkpoint_id == bindparam("of_checkpoint"),
    )
    .values(
        weights=bindparam("new_weights"),
        factor=bindparam("new_factor"),
        pairs=bindparam("new_pairs"),
        carried=bindparam("how"),
    )
)
_LOCK = select(UserRow.incarnation).where(UserRow.incarnation == bindparam("incarnation")).with_for_update()
_MEASURED = [column.name for column in PairRow.__table__.columns if column.name not in ("heads_id", "diff")]


def _add(dialect: Any) -> Any:
    """A row like another one of the same statement, but for heads and base rewards."""
    like = (
        select(
            *(PairRow.__table__.c[name] for name in _MEASURED),
            bindparam("to_heads", type_=PairRow.heads_id.type),
            bindparam("measured", type_=PairRow.diff.type),
        )
        .where(
            PairRow.incarnation == bindparam("life"),
            PairRow.pair_id == bindparam("id"),
            PairRow.content_key == bindparam("content"),
        )
        .order_by(PairRow.heads_id)
        .limit(1)
    )
    statement = dialect.insert(PairRow).from_select([*_MEASURED, "heads_id", "diff"], like, include_defaults=False)
    kept = statement.on_conflict_do_nothing(index_elements=["incarnation", "pair_id", "heads_id"])
    return kept.returning(PairRow.pair_id)


_ADD = {"postgresql": _add(postgresql), "sqlite": _add(sqlite)}


@dataclass(frozen=True, slots=True, eq=False)
class ManySupports:
    """What the solves of U users see.

    Attributes:
        user_P: Of the users who only made plain choices, each at weight 1: whose choice it is, 0 to U - 1, ascending.
        diffs_PK: The choices' base rewards, chosen minus rejected, in the view's heads.
        seconds_P: When they were made, in seconds since 1970.
        others: The support sets of the other users, by their place.
        carried_U: Whether anything of a user's went through a map.
        total_U: Statements of a user's that count and that the view can use, those beyond the support limit included.
    """

    user_P: IntArray
    diffs_PK: Matrix
    seconds_P: Vector
    others: dict[int, list[StoredEvidence]]
    carried_U: npt.NDArray[np.bool_]
    total_U: IntArray


class CarryOver:
    """The users of all tenants on their way to another checkpoint.

    Every method raises `Unavailable` when the database does not answer in time: keep pages to some thousands.
    """

    def __init__(self, database: Database, support_limit: int) -> None:
        self._database = database
        self._support_limit = support_limit

    def count(self, checkpoint_id: str) -> int:
        """How many users are not of `checkpoint_id`."""
        with self._database.reading() as connection:
            return int(connection.execute(_COUNT, {"checkpoint_id": checkpoint_id}).scalar_one())

    def page(self, checkpoint_id: str, after: int, size: int) -> tuple[list[StoredUser], int | None]:
        """Those of the next `size` users who are not of `checkpoint_id`, and the incarnation to go on behind.

        Users come in the order of their incarnations, beginning behind `after` (0 at first). None: there are no more.
        """
        with self._database.snapshot() as connection:
            last = connection.execute(_LAST, {"after": after, "size": size}).scalar_one()
            if last is None:
                return [], None
            asked = {"after": after, "last": last, "checkpoint_id": checkpoint_id}
            return [to_user(row) for row in connection.execute(_OTHERS, asked)], int(last)

    def supports(self, incarnations: Sequence[int], view: HeadsView) -> ManySupports:
        """What solves of these users under `view` would see, as `UserRepository.support` tells it of one."""
        plain: dict[int, list[tuple[Matrix, Vector]]] = {}
        others: dict[int, list[StoredEvidence]] = {}
        carried_U, total_U = np.zeros(len(incarnations), bool), np.zeros(len(incarnations), np.int64)
        with self._database.snapshot() as connection:
            one_by_one = list(range(len(incarnations)))
            if self._database.is_postgresql:
                plain, one_by_one = self._plain(connection, incarnations, view, carried_U, total_U)
            for place in one_by_one:
                support = support_set(connection, incarnations[place], view, self._support_limit)
                evidence, total_U[place] = support.evidence, support.total
                carried_U[place] = any(each.carried for each in evidence)
                if all(_is_plain(each) for each in evidence):
                    seconds = np.array([each.event_time.timestamp() for each in evidence])
                    plain[place] = [(np.array([each.base_rewards for each in evidence]), seconds)] if evidence else []
                else:
                    others[place] = evidence
        places = sorted(plain)
        parts = [part for place in places for part in plain[place]]
        lengths = [sum(len(seconds) for _, seconds in plain[place]) for place in places]
        return ManySupports(
            user_P=np.repeat(np.array(places, np.int64), lengths),
            diffs_PK=np.concatenate([diffs for diffs, _ in parts]) if parts else np.zeros((0, view.heads)),
            seconds_P=np.concatenate([seconds for _, seconds in parts]) if parts else np.zeros(0),
            others=others,
            carried_U=carried_U,
            total_U=total_U,
        )

    def _plain(
        self,
        connection: Connection,
        incarnations: Sequence[int],
        view: HeadsView,
        carried_U: npt.NDArray[np.bool_],
        total_U: IntArray,
    ) -> tuple[dict[int, list[tuple[Matrix, Vector]]], list[int]]:
        """By place the choices of those who only made plain ones, and the places of the others."""
        heads = list(dict.fromkeys([view.heads_id, *view.maps]))
        plain: dict[int, list[tuple[Matrix, Vector]]] = {place: [] for place in range(len(incarnations))}
        plain_U = np.ones(len(incarnations), bool)
        rows = connection.exec_driver_sql(_PLAIN, (list(incarnations), heads, heads))
        for number, heads_id, count, is_plain, diffs, seconds in rows:
            place = number - 1
            total_U[place] += count
            plain_U[place] &= is_plain
            if is_plain:
                diffs_PK = np.frombuffer(diffs, "<f8").reshape(count, -1)
                if heads_id != view.heads_id:
                    diffs_PK = diffs_PK @ view.maps[heads_id].T
                    carried_U[place] = True
                plain[place].append((diffs_PK, np.frombuffer(seconds, ">f8").astype(np.float64)))
        one_by_one = np.flatnonzero(~plain_U | (total_U > self._support_limit)).tolist()
        for place in one_by_one:
            del plain[place]
        return plain, one_by_one

    def write(
        self,
        checkpoint_id: str,
        heads_id: str,
        carried: str | None,
        incarnation_U: IntArray,
        version_U: IntArray,
        pairs_U: IntArray,
        weights_UK: Matrix,
        factors_UF: Matrix | None,
    ) -> int:
        """Give U users weights of another checkpoint, unless they have changed since, and return how many got them.

        Args:
            checkpoint_id: The checkpoint.
            heads_id: Its heads.
            carried: How the weights came there; None where they were solved for as a change would have.
            incarnation_U: Whom.
            version_U: Their versions as read.
            pairs_U: How many statements the weights could be made from.
            weights_UK: Effective weights.
            factors_UF: Packed posterior factors, F = K (K + 1) / 2; None for none.

        Raises:
            EngineError: A number is not finite. Nothing is stored.
        """
        require_finite("a carried state", weights_UK, factors_UF)
        lives, versions, pairs = incarnation_U.tolist(), version_U.tolist(), pairs_U.tolist()
        weights = [to_bytes(weights_K) for weights_K in weights_UK]
        factors = [None] * len(lives) if factors_UF is None else [to_bytes(factor_F) for factor_F in factors_UF]

        def work(connection: Connection) -> int:
            if self._database.is_postgresql:
                columns = (checkpoint_id, heads_id, carried, lives, versions, pairs, weights, factors)
                return connection.exec_driver_sql(_WRITE_MANY, columns).rowcount
            rows = [
                {
                    "life": life,
                    "seen": version,
                    "to_checkpoint": checkpoint_id,
                    "to_heads": heads_id,
                    "how": carried,
                    "new_pairs": counted,
                    "new_weights": new_weights,
                    "new_factor": new_factor,
                }
                for life, version, counted, new_weights, new_factor in zip(
                    lives, versions, pairs, weights, factors, strict=True
                )
            ]
            return connection.execute(_WRITE, rows).rowcount if rows else 0

        return self._database.transaction(work)

    def solved_anew(self, user: StoredUser) -> bool:
        """Give one user of this checkpoint what `user` says instead; False where they have changed since.

        Raises:
            EngineError: A number is not finite. Nothing is stored.
        """
        require_finite("a carried state", user.weights_K, user.factor)
        row = {
            "life": user.incarnation,
            "seen": user.version,
            "of_checkpoint": user.checkpoint_id,
            "new_weights": to_bytes(user.weights_K),
            "new_factor": None if user.factor is None else to_bytes(user.factor),
            "new_pairs": user.pairs,
            "how": user.carried,
        }
        return self._database.transaction(lambda connection: connection.execute(_SOLVED_ANEW, row).rowcount == 1)

    def add_measured(self, incarnation: int, heads_id: str, base_rewards: Mapping[tuple[str, bytes], Vector]) -> int:
        """Add base rewards of stored statements as measured with other heads, and return how many were added.

        Statements that are gone by now, whose ids have come to stand for other content, or that have been measured with
        these heads, are passed over. Whether one counts, and since when, is as under its other heads.

        Args:
            incarnation: Whose.
            heads_id: The heads.
            base_rewards: By id and content key, shaped as in `NewEvidence`.

        Raises:
            EngineError: A base reward is not finite. Nothing is stored.
        """
        require_finite("a base reward", *base_rewards.values())
        rows = [
            {"life": incarnation, "id": name, "content": content, "to_heads": heads_id, "measured": to_bytes(measured)}
            for (name, content), measured in base_rewards.items()
        ]

        def work(connection: Connection) -> int:
            # Against a deletion at the same time, which would miss a row that comes after it.
            if not rows or connection.execute(_LOCK, {"incarnation": incarnation}).one_or_none() is None:
                return 0
            add = _ADD[connection.dialect.name]
            return sum(connection.execute(add, row).first() is not None for row in rows)

        return self._database.transaction(work)


def _is_plain(evidence: StoredEvidence) -> bool:
    return evidence.kind == "pair" and evidence.grade is None and evidence.weight == 1.0 and evidence.tilt == 0.0
