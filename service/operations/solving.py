"""How a user's weights follow from what they said: which evidence counts less with age, the solve, what it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from service.checkpoints import Checkpoint
from service.mrm import Support, UserState, solve
from service.mrm.drift import Drift, assess
from service.mrm.metrics import bradley_terry_loss, pair_accuracy
from service.mrm.statements import TIE
from service.operations.evidence import support_and_ages
from service.store.records import Report, StoredEvidence

DAY_S = 86_400.0

HalfLife = float | Literal["auto"] | None


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """A solve and what it saw.

    Attributes:
        support: The evidence, aged.
        state: Weights and posterior factor.
        half_life_s: The age at which evidence counted half, or the one that fits best where `drift` decided what each
            statement counted; None where age did not matter.
        drift: What the evidence says of changes of taste, where the solve asked it.
    """

    support: Support
    state: UserState
    half_life_s: float | None
    drift: Drift | None = None


@dataclass(frozen=True, slots=True)
class Taste:
    """Whether a user's taste changes.

    Attributes:
        drift: Nats per recent choice by which forgetting predicts better, 0 where it does not; None where there is too
            little to tell.
        half_life_s: The age at which evidence counts half in a solve; None where age does not matter.
    """

    drift: float | None
    half_life_s: float | None


class Solver:
    """The one way from stored evidence to weights, for every checkpoint."""

    def __init__(self, half_life: HalfLife = None) -> None:
        """`half_life`: days after which evidence counts half; `auto`: found for each user; None: age never matters."""
        self._auto = half_life == "auto"
        self._half_life_s = half_life * DAY_S if isinstance(half_life, float | int) else None

    @property
    def by_user(self) -> bool:
        """Whether every user's half-life is found for them alone, so that only `__call__` knows it."""
        return self._auto

    @property
    def half_life_s(self) -> float | None:
        """The age at which everybody's evidence counts half; None where age does not matter, or with `by_user`."""
        return self._half_life_s

    def __call__(self, stored: Sequence[StoredEvidence], checkpoint: Checkpoint) -> Solved:
        """Solve on evidence that was measured with, or carried to, the heads of `checkpoint`."""
        support, ages_P, ages_R = support_and_ages(stored, checkpoint.heads, self._half_life_s)
        if not self._auto:
            return Solved(support, solve(support, checkpoint.start), self._half_life_s)
        drift = assess(support, ages_P, checkpoint.start, ages_R)
        if drift.half_life is not None:
            # Not by the half-life alone: after a sudden change all that came later counts whole.
            support = replace(
                support,
                weights_P=support.weights_P * drift.weights(ages_P),
                weights_R=support.weights_R * drift.weights(ages_R),
            )
        return Solved(support, solve(support, checkpoint.start), drift.half_life, drift)

    def taste(self, stored: Sequence[StoredEvidence], checkpoint: Checkpoint) -> Taste:
        """What evidence says of changes of taste: milliseconds, or tens of them for a thousand choices."""
        support, ages_P, ages_R = support_and_ages(stored, checkpoint.heads)
        drift = assess(support, ages_P, checkpoint.start, ages_R)
        return Taste(drift.score, drift.half_life if self._auto else self._half_life_s)


def report_of(solved: Solved, start: UserState) -> Report:
    """How well the start and the new weights fit the user's choices, each counted once."""
    support = solved.support
    # Of which the better side is known: pairs that are no ties, those of rankings, and those that ratings imply.
    told_PK = support.diffs_PK[support.tilts_P > TIE.tilt]
    better, worse = np.nonzero(
        (support.ratings_R[:, None] > support.ratings_R) & (support.groups_R[:, None] == support.groups_R)
    )
    report: Report = {}
    for when, at in (("before", start), ("after", solved.state)):
        margins_P = told_PK @ at.weights_K
        if len(better):
            rewards_R = support.rated_RK @ at.weights_K
            margins_P = np.concatenate([margins_P, rewards_R[better] - rewards_R[worse]])
        known = len(margins_P) > 0
        report[f"support_loss_{when}"] = bradley_terry_loss(margins_P) if known else None
        report[f"support_accuracy_{when}"] = pair_accuracy(margins_P) if known else None
    return report
