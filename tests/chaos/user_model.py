"""What the store promises of one user, said again with plain dictionaries and lists: nothing of its code is used."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from service.mrm import Support, solve
from service.mrm.state import GaussianStart

Array = npt.NDArray[np.float64]
# How many base rewards each set of heads gives.
HEADS = {"heads-a": 3, "heads-b": 4, "heads-d": 2}


class Refused(Exception):
    """The change is not possible, and nothing happens."""


class NotKept(Exception):
    """That version is not there any more, or not yet, and nothing happens."""


class Missing(Exception):
    """There is no such user or statement, and nothing happens."""


@dataclass(frozen=True)
class View:
    """A checkpoint: its heads, from which heads a map leads to them (the best first), and its start."""

    checkpoint_id: str
    heads_id: str
    maps: Mapping[str, Array]
    start: GaussianStart


@dataclass(frozen=True)
class Item:
    """A statement as it is sent: what it says follows from its id and which of the things that the id may mean."""

    evidence_id: str
    meaning: int
    time: datetime | None = None

    @property
    def kind(self) -> str:
        """By the first letter of its id."""
        return {"p": "pair", "r": "rating", "o": "ranking"}[self.evidence_id[0]]

    @property
    def _draws(self) -> np.random.Generator:
        return np.random.default_rng([*self.evidence_id.encode(), self.meaning])

    @property
    def weight(self) -> float:
        """Its weight."""
        return float(self._draws.choice([0.5, 1.0, 2.0]))

    @property
    def tilt(self) -> float:
        """Of a pair, now and then a tie."""
        return float(self._draws.choice([0.0, 0.0, -0.5])) if self.kind == "pair" else 0.0

    @property
    def grade(self) -> float | None:
        """Of a rating."""
        return float(self._draws.integers(1, 6)) if self.kind == "rating" else None

    @property
    def ranks(self) -> tuple[int, ...] | None:
        """Of a ranking of three texts."""
        return tuple(int(rank) for rank in self._draws.permutation(3)) if self.kind == "ranking" else None

    def measured(self, heads_id: str) -> Array:
        """Base rewards under some heads."""
        return _measured(self, heads_id)


@functools.cache
def _measured(item: Item, heads_id: str) -> Array:
    draws = np.random.default_rng([*item.evidence_id.encode(), item.meaning, *heads_id.encode()])
    return draws.normal(size=(3, HEADS[heads_id]) if item.kind == "ranking" else HEADS[heads_id])


@dataclass(eq=False)
class Statement:
    """One statement for as long as anything of it is stored."""

    item: Item
    time: datetime
    live: bool
    under: set[str]


@dataclass(frozen=True)
class Seen:
    """A statement as a solve sees it: measured with which heads, and its numbers there."""

    item: Item
    heads_id: str
    base_rewards: Array


@dataclass
class Version:
    """A version that is kept. `weights` is None where something of it was deleted since."""

    cause: str
    checkpoint_id: str
    live: list[Statement]
    weights: Array | None
    seen: set[tuple[str, int, str]]
    total: int


@dataclass(frozen=True)
class Answer:
    """What a change must tell."""

    version: int
    cause: str
    checkpoint_id: str
    received: int
    stored: int
    deleted: int
    total: int
    carried: int
    left_out: int
    exact: bool | None
    weights: Array


def support_of(seen: Iterable[tuple[str, Array, float | None, tuple[int, ...] | None, float, float]]) -> Support:
    """Statements (kind, base rewards, grade, ranks, weight, tilt) as a solve takes them.

    Rankings become their pairs: what matters here is which statements there are.
    """
    diffs, weights, tilts, rated, ratings, rating_weights = [], [], [], [], [], []
    heads = 0
    for kind, base_rewards, grade, ranks, weight, tilt in seen:
        heads = base_rewards.shape[-1]
        if kind == "rating":
            rated.append(base_rewards)
            ratings.append(grade)
            rating_weights.append(weight)
        rows = [base_rewards] if kind == "pair" else []
        if ranks is not None:
            places = range(len(ranks))
            rows = [base_rewards[i] - base_rewards[j] for i in places for j in places if ranks[i] < ranks[j]]
        diffs += rows
        weights += [weight] * len(rows)
        tilts += [tilt] * len(rows)
    return Support.of(
        np.array(diffs).reshape(len(diffs), heads),
        rated_RK=np.array(rated).reshape(len(rated), heads),
        ratings_R=np.array(ratings, dtype=np.float64),
        weights_P=np.array(weights, dtype=np.float64),
        tilts_P=np.array(tilts, dtype=np.float64),
        weights_R=np.array(rating_weights, dtype=np.float64),
    )


def weights_of(support: Support, start: GaussianStart) -> Array:
    """Weights [K]; without statements those of the start."""
    return solve(support if len(support) else Support.empty(start.heads), start).weights_K


@dataclass
class UserModel:
    """One life of one user."""

    history: int
    limit: int
    version: int = 0
    statements: dict[str, Statement] = field(default_factory=dict)
    versions: dict[int, Version] = field(default_factory=dict)
    answers: dict[str, tuple[object, Answer]] = field(default_factory=dict)

    def append(self, items: Sequence[Item], now: datetime, view: View, cause: str = "adapt") -> Answer:
        """Everything said before counts on, and `items` as well."""
        self._refuse_contradictions(items, self._live())
        stored, deleted = self._say(items, now, view)
        assert deleted == 0, "an append cannot end what counts"
        return self._next(cause, now, view, received=len(items), stored=stored)

    def replace(self, items: Sequence[Item], now: datetime, view: View) -> Answer:
        """`items` count, and nothing else."""
        self._refuse_contradictions(items, [])
        named = {item.evidence_id for item in items}
        ended = [each for each in self._live() if each.item.evidence_id not in named]
        for each in ended:
            each.live = False
        stored, deleted = self._say(items, now, view, replaces=True)
        return self._next("replace", now, view, received=len(items), stored=stored, deleted=deleted + len(ended))

    def delete(self, ids: Sequence[str], now: datetime, view: View) -> Answer:
        """Gone for good, with whatever was computed from it."""
        if any(each not in self.statements for each in ids):
            raise Missing
        for each in set(ids):
            del self.statements[each]
        return self._next("delete", now, view, deleted=len(set(ids)), forgets=True)

    def rollback(self, version: int, now: datetime, view: View) -> Answer:
        """What counted in `version` counts, as far as it is still there."""
        if version not in self.versions:
            raise NotKept
        back = self.versions[version]
        there = list(self.statements.values())
        restored = [each for each in back.live if each in there and not each.live]
        ended = [each for each in self._live() if each not in back.live]
        for each in restored:
            each.live = True
        for each in ended:
            each.live = False
        return self._next("rollback", now, view, stored=len(restored), deleted=len(ended), back=back)

    def reset(self, forget: bool, now: datetime, view: View) -> Answer:
        """Nothing counts; with `forget` nothing is left of it."""
        ended = self._live()
        for each in ended:
            each.live = False
        if forget:
            self.statements.clear()
        return self._next("forget" if forget else "reset", now, view, deleted=len(ended), forgets=forget)

    def _live(self) -> list[Statement]:
        return [each for each in self.statements.values() if each.live]

    @staticmethod
    def _refuse_contradictions(items: Sequence[Item], live: Sequence[Statement]) -> None:
        meanings = {each.item.evidence_id: each.item.meaning for each in live}
        for item in items:
            if meanings.setdefault(item.evidence_id, item.meaning) != item.meaning:
                raise Refused

    def _say(self, items: Sequence[Item], now: datetime, view: View, replaces: bool = False) -> tuple[int, int]:
        stored = deleted = 0
        said: set[str] = set()
        for item in items:
            if item.evidence_id in said:
                continue
            said.add(item.evidence_id)
            known = self.statements.get(item.evidence_id)
            if known is not None and known.item.meaning != item.meaning:
                deleted += known.live
                known = None
            if known is None:
                self.statements[item.evidence_id] = Statement(item, item.time or now, True, {view.heads_id})
                stored += 1
                continue
            stored += not (known.live and view.heads_id in known.under)
            if not known.live or (replaces and item.time is not None):
                known.time = item.time or now
            known.live = True
            known.under.add(view.heads_id)
        return stored, deleted

    def support(self, view: View) -> tuple[list[Seen], int, int]:
        """What a solve sees, the newest first; how many statements it could see; how many it cannot."""
        usable = []
        for each in self._live():
            for heads_id in (view.heads_id, *view.maps):
                if heads_id in each.under:
                    usable.append((each.time, each.item.evidence_id.encode(), each.item, heads_id))
                    break
        usable.sort(key=lambda each: each[:2], reverse=True)
        seen = []
        for _, _, item, heads_id in usable[: self.limit]:
            measured = item.measured(heads_id)
            carried = measured if heads_id == view.heads_id else measured @ view.maps[heads_id].T
            seen.append(Seen(item, heads_id, carried))
        return seen, len(usable), len(self._live()) - len(usable)

    def _next(
        self,
        cause: str,
        now: datetime,
        view: View,
        *,
        received: int = 0,
        stored: int = 0,
        deleted: int = 0,
        forgets: bool = False,
        back: Version | None = None,
    ) -> Answer:
        if forgets:
            for version in self.versions.values():
                version.weights = None
            self.answers = {
                key: (body, Answer(**(vars(answer) | {"weights": np.zeros(0)})))
                for key, (body, answer) in self.answers.items()
            }
        self.version += 1
        seen, total, left_out = self.support(view)
        support = support_of(
            (each.item.kind, each.base_rewards, each.item.grade, each.item.ranks, each.item.weight, each.item.tilt)
            for each in seen
        )
        weights = weights_of(support, view.start)
        names = {(each.item.evidence_id, each.item.meaning, each.heads_id) for each in seen}
        exact = None
        if back is not None:
            # From the same statements the same checkpoint makes the same weights; from others, others.
            exact = back.weights is not None and (back.checkpoint_id, back.seen) == (view.checkpoint_id, names)
        self.versions[self.version] = Version(cause, view.checkpoint_id, self._live(), weights, names, total)
        for version in [each for each in self.versions if each < self.version - self.history]:
            del self.versions[version]
        kept = [each for version in self.versions.values() for each in version.live]
        self.statements = {name: each for name, each in self.statements.items() if each.live or each in kept}
        return Answer(
            version=self.version,
            cause=cause,
            checkpoint_id=view.checkpoint_id,
            received=received,
            stored=stored,
            deleted=deleted,
            total=total,
            carried=sum(each.heads_id != view.heads_id for each in seen),
            left_out=left_out,
            exact=exact,
            weights=weights,
        )
