"""Carrying every user to a checkpoint, page by page, beside a running server: what `metareward readapt` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final, Literal

import numpy as np

from service.checkpoints import Checkpoint
from service.mrm import GaussianStart, Support, UserState, solve
from service.mrm.batch import solve_many
from service.mrm.carry import carry_many
from service.mrm.state import FloatArray, IntArray
from service.mrm.statements import half_life_weights
from service.operations.carry import carry_user, how_carried, state_map
from service.operations.solving import Solver
from service.store.carry_over import CarryOver, ManySupports
from service.store.records import HeadsView, StoredUser
from service.store.users import UserRepository

Method = Literal["auto", "linear", "solve"]

BATCH_USERS: Final = 2000


@dataclass(slots=True)
class Readapted:
    """What became of users so far.

    Attributes:
        seen: Users who were not of the checkpoint.
        solved: Users whose weights were solved for from what they said.
        mapped: Users whose weights were mapped.
        changed: Of both, those who said something meanwhile: they were solved for then, and were left alone.
        left: Users of whom this checkpoint sees nothing; they were left alone too.
        seconds: What it took.
    """

    seen: int = 0
    solved: int = 0
    mapped: int = 0
    changed: int = 0
    left: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _States:
    """States of some users of a page, at their places in it, what they are made from, and how they came about."""

    places: IntArray
    pairs_U: IntArray
    weights_UK: FloatArray
    factors_UF: FloatArray | None
    carried: str


class Readapt:
    """Gives users weights of one checkpoint.

    Only users who are not of it are taken, so a run that was stopped is gone on with by the next one. The version
    guards every write: who says something meanwhile is not overwritten.
    """

    def __init__(
        self,
        *,
        carry_over: CarryOver,
        repository: UserRepository,
        checkpoint: Checkpoint,
        view: HeadsView,
        solver: Solver,
        method: Method = "auto",
        batch: int = BATCH_USERS,
    ) -> None:
        """Nothing is read before it is called.

        Args:
            carry_over: The users, many at a time.
            repository: The users, one by one.
            checkpoint: Whose weights they get.
            view: From where a solve looks.
            solver: As the server solves.
            method: `solve`: from what they said, as the server does at their next request. `linear`: their weights and
                posterior through a map, without reading what they said. `auto`: solved, and mapped where this
                checkpoint sees nothing of what they said.
            batch: Users in one page.
        """
        self._carry_over = carry_over
        self._repository = repository
        self._checkpoint = checkpoint
        self._view = view
        self._solver = solver
        self._method = method
        self._batch = batch
        self.done = Readapted()

    def __call__(self, on_page: Callable[[int], None] = lambda _: None) -> Readapted:
        """Carry everybody; `on_page` hears how many users each page had.

        Raises:
            Unavailable: The database does not answer; what is done is done.
            EngineError: A state is not finite.
        """
        began = time.perf_counter()
        # While one page is worked on, the database already looks for the next.
        with ThreadPoolExecutor(1, thread_name_prefix="readapt") as ahead:
            coming = ahead.submit(self._read, 0)
            while True:
                users, after = coming.result()
                if after is not None:
                    coming = ahead.submit(self._read, after)
                if users:
                    self._page(users)
                    self.done.seconds = time.perf_counter() - began
                    on_page(len(users))
                if after is None:
                    return self.done

    def _read(self, after: int) -> tuple[list[StoredUser], int | None]:
        return self._carry_over.page(self._checkpoint.checkpoint_id, after, self._batch)

    def _page(self, users: Sequence[StoredUser]) -> None:
        taken = np.zeros(len(users), bool)
        for states in self._states(users):
            taken[states.places] = True
            lives = np.array([users[place].incarnation for place in states.places], dtype=np.int64)
            versions = np.array([users[place].version for place in states.places], dtype=np.int64)
            checkpoint = self._checkpoint
            written = self._carry_over.write(
                checkpoint.checkpoint_id,
                checkpoint.heads_id,
                states.carried,
                lives,
                versions,
                states.pairs_U,
                states.weights_UK,
                states.factors_UF,
            )
            self.done.changed += len(lives) - written
        self.done.seen += len(users)
        self.done.left += int((~taken).sum())

    def _states(self, users: Sequence[StoredUser]) -> Iterator[_States]:
        left = np.arange(len(users))
        if self._method != "linear":
            solved, left = self._solve(users)
            for states in solved:
                self.done.solved += len(states.places)
                yield states
        if self._method != "solve":
            for states in self._mapped(users, left):
                self.done.mapped += len(states.places)
                yield states

    def _solve(self, users: Sequence[StoredUser]) -> tuple[list[_States], IntArray]:
        """States of those of whom anything is seen, or who said nothing; and the places of the others."""
        if self._solver.by_user:
            return self._solve_alone(users)
        supports = self._carry_over.supports([user.incarnation for user in users], self._view)
        said_U = np.bincount(supports.user_P, minlength=len(users))
        weights_UK, factors_UF = self._plain(supports, len(users))
        for place, evidence in supports.others.items():
            said_U[place] = len(evidence)
            state = self._solver(evidence, self._checkpoint).state
            weights_UK[place] = state.weights_K
            if factors_UF is not None and state.factor is not None:
                factors_UF[place] = state.factor
        hows = [
            how_carried(bool(said), bool(carried), left_out=max(0, user.pairs - int(said)))
            for user, said, carried in zip(users, said_U, supports.carried_U, strict=True)
        ]
        return _parted(hows, supports.total_U, weights_UK, factors_UF)

    def _solve_alone(self, users: Sequence[StoredUser]) -> tuple[list[_States], IntArray]:
        """The same one by one, as their next requests would: every user has a half-life of their own."""
        solved = [
            carry_user(user, self._checkpoint, repository=self._repository, view=self._view, solver=self._solver).user
            for user in users
        ]
        factors = [user.factor for user in solved if user.factor is not None]
        return _parted(
            [user.carried for user in solved],
            np.array([user.pairs for user in solved], dtype=np.int64),
            np.array([user.weights_K for user in solved]),
            np.array(factors) if len(factors) == len(solved) else None,
        )

    def _plain(self, supports: ManySupports, users: int) -> tuple[FloatArray, FloatArray | None]:
        """Weights [U, K] and factors [U, F] after the plain choices; the start of users without any."""
        newest_U = np.full(users, -np.inf)
        np.maximum.at(newest_U, supports.user_P, supports.seconds_P)
        weights_P = half_life_weights(newest_U[supports.user_P] - supports.seconds_P, self._solver.half_life_s)
        start = self._checkpoint.start
        if isinstance(start, GaussianStart):
            states = solve_many(supports.diffs_PK, supports.user_P, users, start, weights_P=weights_P)
            return states.weights_UK, states.factors_UF
        ends = np.searchsorted(supports.user_P, np.arange(users + 1)).tolist()
        alone: list[UserState] = []
        for first, end in pairwise(ends):
            support = Support.of(supports.diffs_PK[first:end], weights_P=weights_P[first:end])
            alone.append(solve(support, start))
        return np.array([state.weights_K for state in alone]), None

    def _mapped(self, users: Sequence[StoredUser], places: IntArray) -> Iterator[_States]:
        """States of those whose checkpoint a good enough map leads from."""
        by_checkpoint: dict[tuple[str, bool], list[int]] = {}
        for place in places.tolist():
            key = users[place].checkpoint_id, users[place].factor is not None
            by_checkpoint.setdefault(key, []).append(place)
        for (checkpoint_id, has_factor), some in by_checkpoint.items():
            linked = state_map(self._checkpoint, self._view, checkpoint_id)
            if linked is None:
                continue
            weights_UK = np.array([users[place].weights_K for place in some])
            factors_UF = np.array([users[place].factor for place in some], dtype=np.float64) if has_factor else None
            states = carry_many(weights_UK, factors_UF, linked.maps, linked.start, self._checkpoint.start)
            pairs_U = np.array([users[place].pairs for place in some], dtype=np.int64)
            yield _States(np.array(some, dtype=np.int64), pairs_U, states.weights_UK, states.factors_UF, "linear")


def _parted(
    hows: Sequence[str | None], pairs_U: IntArray, weights_UK: FloatArray, factors_UF: FloatArray | None
) -> tuple[list[_States], IntArray]:
    """States by how they came about, and the places of users who would start anew."""
    states = []
    by_how = sorted((how, place) for place, how in enumerate(hows) if how is not None and how != "start")
    for how, group in groupby(by_how, key=lambda each: each[0]):
        places = np.array([place for _, place in group], dtype=np.int64)
        factors = None if factors_UF is None else factors_UF[places]
        states.append(_States(places, pairs_U[places], weights_UK[places], factors, how))
    return states, np.array([place for place, how in enumerate(hows) if how == "start"], dtype=np.int64)
