"""What the clients of one user were told, and what a database must hold then: nothing of the server's own code but the
solve."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import psycopg

from chaos.oracle import COMPLETIONS, TOLERANCE, Oracle
from service.mrm import Support, solve

# The same evidence in the same order of summation: a solve differs from itself by nothing.
SAME_SOLVE = 1e-12

Choice = tuple[int, int, int]
"""Prompt, chosen and rejected completion of the pool."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One change that was answered.

    Attributes:
        kind: adapt, delete, rollback or reset.
        key: Its Idempotency-Key; of an adapt the id of its pair as well.
        version: What it was told to have made.
        weights_K: What came back, [K]; empty where something was deleted before the answer came.
        choice: Of an adapt.
        pair_id: Of a delete.
        back_to: Of a rollback, the version.
        exact: Of a rollback, whether it says that the weights are those of that version.
    """

    kind: str
    key: str
    version: int
    weights_K: npt.NDArray[np.float64]
    choice: Choice | None = None
    pair_id: str = ""
    back_to: int = 0
    exact: bool | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """One score that was answered: of which prompt, at which version, asked for which, and its rewards."""

    prompt: int
    min_version: int
    version: int
    rewards: npt.NDArray[np.float64]


@dataclass
class Ledger:
    """One user, of whom several clients speak at once.

    Attributes:
        answered: Every change that was answered.
        scored: Every score that was answered.
        deletable: Pairs that nobody has begun to delete.
    """

    user_id: str
    answered: list[Answered] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    deletable: list[str] = field(default_factory=list)

    @property
    def version(self) -> int:
        """The highest version that anybody was told."""
        return max((change.version for change in self.answered), default=0)


@dataclass
class Replay:
    """All answered changes of one user, one after the other.

    Attributes:
        live: By version, the pairs that count in it.
        gone: Pairs that are deleted for good.
        weights_gone: The last version of those before which weights are deleted for good, too.
    """

    live: dict[int, frozenset[str]] = field(default_factory=lambda: {0: frozenset()})
    gone: set[str] = field(default_factory=set)
    weights_gone: int = 0

    @classmethod
    def of(cls, changes: list[Answered], verdict: Verdict, name: str) -> Replay:
        """Replay `changes`, which are in the order of their versions."""
        replay = cls()
        live: frozenset[str] = frozenset()
        for change in changes:
            match change.kind:
                case "adapt":
                    live |= {change.key}
                case "delete":
                    replay.gone.add(change.pair_id)
                    replay.weights_gone = change.version - 1
                    live -= {change.pair_id}
                case "rollback":
                    live = replay.live.get(change.back_to, frozenset()) - replay.gone
                    if change.exact != (change.back_to > replay.weights_gone):
                        verdict.torn.append(f"{name}: version {change.version} is exact: {change.exact}")
                case "reset":
                    live = frozenset()
            replay.live[change.version] = live
        return replay


@dataclass
class Verdict:
    """What is wrong with users, by kind; all empty is right.

    Attributes:
        lost: Answered adapts that are not there.
        doubled: Adapts that count twice, or have two versions, or one version of two adapts.
        torn: Users whose weights are not the solve of their pairs, or whose version is not the number of changes.
        misread: Scores that no version of the user gives.
    """

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    misread: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """All of it."""
        return [
            f"{kind} {problem}" for kind in ("lost", "doubled", "torn", "misread") for problem in getattr(self, kind)
        ]


def verify(ledgers: list[Ledger], database_url: str, oracle: Oracle) -> Verdict:
    """Compare ledgers with a database to which nobody writes: every request has its answer by now."""
    verdict = Verdict()
    with psycopg.connect(database_url) as connection:
        for ledger in ledgers:
            _verify_user(ledger, connection, oracle, verdict)
            _verify_scores(ledger, oracle, verdict)
    return verdict


def _verify_user(ledger: Ledger, connection: psycopg.Connection[Any], oracle: Oracle, verdict: Verdict) -> None:
    name, changes = ledger.user_id, sorted(ledger.answered, key=lambda change: change.version)
    replay = Replay.of(changes, verdict, name)
    adapts = {change.key: change for change in changes if change.kind == "adapt"}
    users = connection.execute(
        "SELECT incarnation, version, weights, pairs FROM users WHERE user_id = %s", [name]
    ).fetchall()
    if not users:
        verdict.lost += [f"{name}: all of {len(changes)}"] * bool(changes)
        return
    incarnation, version, weights, count = users[0]
    rows = connection.execute("SELECT pair_id, diff, live FROM pairs WHERE incarnation = %s", [incarnation]).fetchall()
    stored = {pair_id: np.frombuffer(diff, "<f8") for pair_id, diff, _ in rows}
    live = {pair_id for pair_id, _, counts in rows if counts}
    kept = dict(
        connection.execute("SELECT key, answer FROM idempotency WHERE incarnation = %s", [incarnation]).fetchall()
    )
    history = connection.execute(
        "SELECT version, weights FROM versions WHERE incarnation = %s ORDER BY version", [incarnation]
    ).fetchall()

    told: dict[int, str] = {}
    for change in changes:
        if change.key in adapts and change.key not in stored and change.key not in replay.gone:
            verdict.lost.append(f"{name}: pair {change.key} of version {change.version}")
        if told.setdefault(change.version, change.key) != change.key:
            verdict.doubled.append(f"{name}: version {change.version} is {told[change.version]} and {change.key}")
        answer = orjson.loads(kept.get(change.key, b'{"version": null}'))
        if answer["version"] != change.version:
            verdict.doubled.append(f"{name}: {change.key} is version {change.version} and {answer['version']}")
    if sorted(told) != list(range(1, len(told) + 1)):
        verdict.doubled.append(f"{name}: versions {sorted(told)} were told")
    if set(stored) - adapts.keys() or set(stored) & replay.gone:
        verdict.doubled.append(f"{name}: {len(stored)} pairs of {len(adapts)} adapts, {len(replay.gone)} deleted")
    for key, diff in stored.items():
        if (adapt := adapts.get(key)) is not None and not np.abs(diff - _said(oracle, adapt)).max() <= TOLERANCE:
            verdict.torn.append(f"{name}: pair {key} is not what was said")
    if version != len(told) or count != len(live) or live != replay.live[max(replay.live)]:
        verdict.torn.append(f"{name}: version {version} of {len(told)} changes, {count} pairs, {len(live)} that count")
    error = np.abs(np.frombuffer(weights, "<f8") - _solve(oracle, [stored[key] for key in live])).max()
    if not error <= SAME_SOLVE:
        verdict.torn.append(f"{name}: weights are {error:.1e} from the solve of its {len(live)} pairs")
    if [number for number, _ in history] != list(range(1, version)):
        verdict.torn.append(f"{name}: versions {[number for number, _ in history]} are kept before {version}")
    by_version = {change.version: change for change in changes}
    for number, then in history:
        if (then is None) != (number <= replay.weights_gone):
            verdict.torn.append(f"{name}: weights of version {number} are kept: {then is not None}")
        change = by_version.get(number)
        known = then is not None and change is not None and len(change.weights_K)
        if known and then != change.weights_K.astype("<f8").tobytes():
            verdict.torn.append(f"{name}: version {number} was told with other weights than it has")
    # What versions told is the solve of what counted in them.
    for change in changes[:: max(1, len(changes) // 8)]:
        counted = replay.live[change.version]
        if len(change.weights_K) and counted <= stored.keys():
            error = np.abs(change.weights_K - _solve(oracle, [stored[key] for key in counted])).max()
            if not error <= SAME_SOLVE:
                verdict.torn.append(f"{name}: the answer of version {change.version} is of other pairs")


def _verify_scores(ledger: Ledger, oracle: Oracle, verdict: Verdict) -> None:
    changes = {change.version: change for change in ledger.answered}
    replay = Replay.of(sorted(ledger.answered, key=lambda change: change.version), Verdict(), ledger.user_id)
    said = {change.key: change for change in ledger.answered}
    weights: dict[int, npt.NDArray[np.float64]] = {}
    for score in ledger.scored:
        change = changes.get(score.version)
        if change is None or score.version < score.min_version:
            verdict.misread.append(f"{ledger.user_id}: version {score.version}, not {score.min_version} or later")
            continue
        if score.version not in weights:
            counted = [_said(oracle, said[key]) for key in replay.live[score.version]]
            weights[score.version] = change.weights_K if len(change.weights_K) else _solve(oracle, counted)
        expected = oracle.base_rewards[score.prompt, :COMPLETIONS] @ weights[score.version]
        error = np.abs(score.rewards - expected).max()
        if not error <= TOLERANCE * max(1.0, float(np.abs(weights[score.version]).sum())):
            verdict.misread.append(f"{ledger.user_id}: rewards of version {score.version} differ by {error:.1e}")


def _said(oracle: Oracle, adapt: Answered) -> npt.NDArray[np.float64]:
    assert adapt.choice is not None
    i, chosen, rejected = adapt.choice
    difference: npt.NDArray[np.float64] = oracle.base_rewards[i, chosen] - oracle.base_rewards[i, rejected]
    return difference


def _solve(oracle: Oracle, diffs: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    support = Support.of(np.array(diffs)) if diffs else Support.empty(oracle.checkpoint.heads)
    return solve(support, oracle.checkpoint.start).weights_K
