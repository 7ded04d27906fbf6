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
    """One adapt that was answered: its key (the pair's id as well), what it said, and what came back."""

    key: str
    choice: Choice
    version: int
    weights_K: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scored:
    """One score that was answered: of which prompt, at which version, asked for which, and its rewards."""

    prompt: int
    min_version: int
    version: int
    rewards: npt.NDArray[np.float64]


@dataclass
class Ledger:
    """One user, of whom several clients speak at once."""

    user_id: str
    answered: list[Answered] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)

    @property
    def version(self) -> int:
        """The highest version that anybody was told."""
        return max((adapt.version for adapt in self.answered), default=0)


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
    name = ledger.user_id
    users = connection.execute(
        "SELECT incarnation, version, weights, pairs FROM users WHERE user_id = %s", [name]
    ).fetchall()
    if not users:
        verdict.lost += [f"{name}: all of {len(ledger.answered)}"] * bool(ledger.answered)
        return
    incarnation, version, weights, count = users[0]
    rows = connection.execute(
        "SELECT pair_id, diff FROM pairs WHERE incarnation = %s ORDER BY pair_id", [incarnation]
    ).fetchall()
    stored = {pair_id: np.frombuffer(diff, "<f8") for pair_id, diff in rows}
    kept = dict(
        connection.execute("SELECT key, answer FROM idempotency WHERE incarnation = %s", [incarnation]).fetchall()
    )

    told: dict[int, str] = {}
    for adapt in ledger.answered:
        if adapt.key not in stored:
            verdict.lost.append(f"{name}: pair {adapt.key} of version {adapt.version}")
            continue
        i, chosen, rejected = adapt.choice
        said = oracle.base_rewards[i, chosen] - oracle.base_rewards[i, rejected]
        if not np.abs(stored[adapt.key] - said).max() <= TOLERANCE:
            verdict.torn.append(f"{name}: pair {adapt.key} is not what was said")
        if told.setdefault(adapt.version, adapt.key) != adapt.key:
            verdict.doubled.append(f"{name}: version {adapt.version} was told of {told[adapt.version]} and {adapt.key}")
        answer = orjson.loads(kept.get(adapt.key, b'{"version": null}'))
        if answer["version"] != adapt.version:
            verdict.doubled.append(f"{name}: {adapt.key} is version {adapt.version} and {answer['version']}")
    if sorted(told) != list(range(1, len(told) + 1)):
        verdict.doubled.append(f"{name}: versions {sorted(told)} were told")
    if set(stored) != {adapt.key for adapt in ledger.answered}:
        verdict.doubled.append(f"{name}: {len(stored)} pairs of {len(ledger.answered)} adapts")
    if version != len(told) or count != len(stored):
        verdict.torn.append(f"{name}: version {version}, {count} pairs, but {len(told)} changes, {len(stored)} pairs")
    error = np.abs(np.frombuffer(weights, "<f8") - _solve(oracle, list(stored.values()))).max()
    if not error <= SAME_SOLVE:
        verdict.torn.append(f"{name}: weights are {error:.1e} from the solve of its {len(stored)} pairs")
    # What every version told is the solve of what was said up to it.
    adapts = sorted(ledger.answered, key=lambda adapt: adapt.version)
    for n in range(1, len(adapts) + 1, max(1, len(adapts) // 5)):
        diffs = [stored[adapt.key] for adapt in adapts[:n] if adapt.key in stored]
        if not np.abs(adapts[n - 1].weights_K - _solve(oracle, diffs)).max() <= SAME_SOLVE:
            verdict.torn.append(f"{name}: the answer of version {adapts[n - 1].version} is of other pairs")


def _verify_scores(ledger: Ledger, oracle: Oracle, verdict: Verdict) -> None:
    weights = {adapt.version: adapt.weights_K for adapt in ledger.answered}
    for score in ledger.scored:
        if score.version < score.min_version or score.version not in weights:
            verdict.misread.append(f"{ledger.user_id}: version {score.version}, not {score.min_version} or later")
            continue
        expected = oracle.base_rewards[score.prompt, :COMPLETIONS] @ weights[score.version]
        error = np.abs(score.rewards - expected).max()
        if not error <= TOLERANCE * max(1.0, float(np.abs(weights[score.version]).sum())):
            verdict.misread.append(f"{ledger.user_id}: rewards of version {score.version} differ by {error:.1e}")


def _solve(oracle: Oracle, diffs: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    support = Support.of(np.array(diffs)) if diffs else Support.empty(oracle.checkpoint.heads)
    return solve(support, oracle.checkpoint.start).weights_K
