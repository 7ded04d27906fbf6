"""How a user's weights follow from what they said: which evidence counts less with age, the solve, what it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.checkpoints import Checkpoint
from service.mrm import Support, UserState, solve
from service.mrm.metrics import bradley_terry_loss, pair_accuracy
from service.mrm.statements import TIE
from service.operations.evidence import support_of
from service.store.records import Report, StoredEvidence

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """A solve and what it saw.

    Attributes:
        support: The evidence, aged.
        state: Weights and posterior factor.
        half_life_s: The age at which evidence counted half; None where age did not matter.
    """

    support: Support
    state: UserState
    half_life_s: float | None


class Solver:
    """The one way from stored evidence to weights, for every checkpoint."""

    def __init__(self, half_life_days: float | None = None) -> None:
        """`half_life_days` is the age at which evidence counts half; None: age does not matter."""
        self._half_life_s = None if half_life_days is None else half_life_days * DAY_S

    def __call__(self, stored: Sequence[StoredEvidence], checkpoint: Checkpoint) -> Solved:
        """Solve on evidence that was measured with, or carried to, the heads of `checkpoint`."""
        support = support_of(stored, checkpoint.heads, self._half_life_s)
        return Solved(support, solve(support, checkpoint.start), self._half_life_s)


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
