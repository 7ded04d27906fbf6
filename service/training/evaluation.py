"""The protocol: unseen users after 0, 5, 10, 20 and 50 of their pairs, beside one taste for everybody.

Adaptation is `service.mrm.solve`, the code that the server runs, one user at a time. Definitions:

- accuracy: mean over unseen users of the share of their query pairs ordered right (a tie counts one half);
- worst k %: mean accuracy of the ceil(k U) users worst served, once as the method's own worst users and once as the
  fixed set of the population model's worst users;
- log-loss: mean over users of their mean Bradley-Terry loss, in nats;
- calibration error: 15 equal-width bins of the predicted side's confidence, all users' query pairs pooled, beside what
  a perfectly calibrated model with the same confidences would show at this sample size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.checkpoints import Checkpoint
from service.datasets.embedded import EmbeddedDataset
from service.errors import ConfigurationError, InvalidInput
from service.mrm import Start, Support, solve
from service.mrm.metrics import (
    Calibration,
    bradley_terry_loss,
    calibration,
    pair_accuracy,
    perfect_calibration_error,
    worst_share_mean,
    worst_share_users,
)
from service.mrm.state import FloatArray
from service.training.empirical_bayes import BradleyTerryFit
from service.training.pairs import IntArray

SHOTS: Final = (0, 5, 10, 20, 50)
WORST_SHARES: Final = (0.1, 0.2, 0.5)
CHUNK_TEXTS: Final = 8192
OnUser = Callable[[], None]


@dataclass(frozen=True, slots=True)
class UnseenUser:
    """One user of the protocol, as texts.

    Attributes:
        user: Position in the data set's list of users.
        support_chosen_P: Rows of the data set, in the order in which the pairs are given.
        support_rejected_P: The others.
        support_strength_P: Strengths.
        query_chosen_Q: Rows of the data set.
        query_rejected_Q: The others.
    """

    user: int
    support_chosen_P: IntArray
    support_rejected_P: IntArray
    support_strength_P: FloatArray
    query_chosen_Q: IntArray
    query_rejected_Q: IntArray


@dataclass(frozen=True, slots=True)
class Measured:
    """One method at one number of pairs.

    Attributes:
        shots: Pairs given; a user with fewer gave all.
        accuracy_U: Accuracy of each user.
        loss_U: Mean log-loss of each user.
        calibration: Reliability of all query pairs pooled.
        perfect_error: Calibration error of a perfectly calibrated model at this sample size.
    """

    shots: int
    accuracy_U: FloatArray
    loss_U: FloatArray
    calibration: Calibration
    perfect_error: float

    def as_json(self, population: Measured) -> dict[str, Any]:
        """The protocol's numbers; `population` decides who the fixed worst users are."""
        own = {_percent(share): worst_share_mean(self.accuracy_U, share) for share in WORST_SHARES}
        fixed = {
            _percent(share): float(self.accuracy_U[worst_share_users(population.accuracy_U, share)].mean())
            for share in WORST_SHARES
        }
        return {
            "shots": self.shots,
            "accuracy": float(self.accuracy_U.mean()),
            "gain": float(self.accuracy_U.mean() - population.accuracy_U.mean()),
            "worst_own": own,
            "worst_of_population": fixed,
            "log_loss": float(self.loss_U.mean()),
            "calibration_error": self.calibration.error,
            "calibration_error_if_perfect": self.perfect_error,
            "calibration_bins": [
                {"confidence": confidence, "accuracy": accuracy, "pairs": int(count)}
                for confidence, accuracy, count in zip(
                    self.calibration.confidence_C,
                    self.calibration.accuracy_C,
                    self.calibration.count_C,
                    strict=True,
                )
                if count
            ],
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The protocol's result for one checkpoint and one split.

    Attributes:
        user_U: Unseen users, as positions in the data set's list.
        support_U: Support pairs that each user has; those with fewer than asked for gave all.
        query_pairs: Query pairs in all.
        by_shots: The checkpoint, by rising number of pairs.
        baseline: Tuned Bradley-Terry, or None where it was not asked for.
        baseline_choice: What the baseline chose.
    """

    user_U: IntArray
    support_U: IntArray
    query_pairs: int
    by_shots: list[Measured]
    baseline: Measured | None
    baseline_choice: dict[str, Any] | None

    @property
    def population(self) -> Measured:
        """Tuned Bradley-Terry; without it the checkpoint with the fewest pairs."""
        return self.baseline or self.by_shots[0]

    def as_json(self) -> dict[str, Any]:
        """All numbers but the per-user ones, JSON-able."""
        return {
            "users": len(self.user_U),
            "query_pairs": self.query_pairs,
            "baseline": self.baseline and self.baseline.as_json(self.population),
            "baseline_choice": self.baseline_choice,
            "by_shots": [
                {**measured.as_json(self.population), "pairs_given": self.pairs_given(measured.shots)}
                for measured in self.by_shots
            ],
        }

    def pairs_given(self, shots: int) -> float:
        """Pairs that users gave on average when asked for `shots`."""
        return float(np.minimum(self.support_U, shots).mean())

    def distinct(self) -> list[Measured]:
        """`by_shots` without those in which no user gave more pairs than in the one before."""
        given = [self.pairs_given(measured.shots) for measured in self.by_shots]
        return [
            measured
            for number, measured in enumerate(self.by_shots)
            if number == 0 or given[number] > given[number - 1]
        ]

    def gain(self) -> tuple[float, float | None]:
        """Accuracy gained over the population model at the most pairs, and its standard error over users.

        The error is that of paired differences; None for a single user.
        """
        gain_U = self.by_shots[-1].accuracy_U - self.population.accuracy_U
        error = float(gain_U.std(ddof=1) / np.sqrt(len(gain_U))) if len(gain_U) > 1 else None
        return float(gain_U.mean()), error


def unseen_users(dataset: EmbeddedDataset, split: str) -> list[UnseenUser]:
    """The users of the split's support and query parts that have a query pair.

    Raises:
        InvalidInput: There is none.
    """
    table = dataset.split(split)
    support, query = table.support(), table.query()
    support_of, query_of = support.by_user(), query.by_user()
    nothing = np.zeros(0, np.int64)
    users = []
    for user, query_rows in query_of.items():
        rows = support_of.get(user, nothing)
        users.append(
            UnseenUser(
                user,
                support.chosen_P[rows].astype(np.int64),
                support.rejected_P[rows].astype(np.int64),
                support.strength_P[rows].astype(np.float64),
                query.chosen_P[query_rows].astype(np.int64),
                query.rejected_P[query_rows].astype(np.int64),
            )
        )
    if not users:
        raise InvalidInput.single("split", f"{split!r} has no query pairs of unseen users to evaluate on")
    return users


def evaluate_checkpoint(
    dataset: EmbeddedDataset,
    split: str,
    checkpoint: Checkpoint,
    shots: Sequence[int] = SHOTS,
    baseline: BradleyTerryFit | None = None,
    on_user: OnUser = lambda: None,
) -> Evaluation:
    """Run the protocol.

    Args:
        dataset: Data set of the checkpoint's backbone.
        split: Split whose unseen users are judged.
        checkpoint: Heads and start.
        shots: Numbers of support pairs.
        baseline: Tuned Bradley-Terry of the same seen users, to be shown beside.
        on_user: Called after each user, for progress.

    Raises:
        ConfigurationError: The data were embedded by another backbone.
        InvalidInput: The split has no unseen users, or a number of shots is negative.
    """
    if any(count < 0 for count in shots) or not shots:
        raise InvalidInput.single("shots", "give numbers of pairs, 0 or more")
    ours, theirs = checkpoint.backbone, dataset.backbone
    if (ours.fingerprint, ours.template_id) != (theirs.fingerprint, theirs.template_id):
        raise ConfigurationError(
            f"the checkpoint's heads are for {ours.id} ({ours.fingerprint[:12]}), the data were embedded by "
            f"{theirs.id} ({theirs.fingerprint[:12]}): embed the data with the checkpoint's backbone"
        )
    users = unseen_users(dataset, split)
    rows, compact_users = _compacted(users)
    base_NK = _linear(dataset, rows, checkpoint.A_KD) + checkpoint.b_K
    margins_SU = adapted_margins(compact_users, base_NK, checkpoint.start, sorted(set(shots)), on_user)
    by_shots = [measure(count, margins_U) for count, margins_U in margins_SU.items()]
    measured_baseline = None
    if baseline is not None:
        reward_N = _linear(dataset, rows, baseline.direction_D[None])[:, 0]
        measured_baseline = measure(
            0, [reward_N[user.query_chosen_Q] - reward_N[user.query_rejected_Q] for user in compact_users]
        )
    return Evaluation(
        user_U=np.array([user.user for user in users]),
        support_U=np.array([len(user.support_chosen_P) for user in users]),
        query_pairs=sum(len(user.query_chosen_Q) for user in users),
        by_shots=by_shots,
        baseline=measured_baseline,
        baseline_choice=asdict(baseline.choice) if baseline else None,
    )


def adapted_margins(
    users: Sequence[UnseenUser],
    base_NK: FloatArray,
    start: Start,
    shots: Sequence[int],
    on_user: OnUser = lambda: None,
) -> dict[int, list[FloatArray]]:
    """Logits of every user's query pairs after each number of support pairs.

    Args:
        users: Unseen users over the texts of `base_NK`.
        base_NK: Base rewards of texts.
        start: The checkpoint's start.
        shots: Numbers of support pairs; a user with fewer gives all.
        on_user: Called after each user.

    Returns:
        Number of pairs -> per user, logits [Q] that the chosen text is preferred.
    """
    margins: dict[int, list[FloatArray]] = {count: [] for count in shots}
    for user in users:
        diffs_PK = base_NK[user.support_chosen_P] - base_NK[user.support_rejected_P]
        query_QK = base_NK[user.query_chosen_Q] - base_NK[user.query_rejected_Q]
        for count in shots:
            state = solve(Support(diffs_PK[:count], user.support_strength_P[:count]), start)
            margins[count].append(query_QK @ state.weights_K)
        on_user()
    return margins


def measure(shots: int, margins_U: Sequence[FloatArray]) -> Measured:
    """The protocol's numbers from every user's query logits."""
    pooled_J = np.concatenate(margins_U)
    return Measured(
        shots=shots,
        accuracy_U=np.array([pair_accuracy(margin_Q) for margin_Q in margins_U]),
        loss_U=np.array([bradley_terry_loss(margin_Q) for margin_Q in margins_U]),
        calibration=calibration(pooled_J),
        perfect_error=perfect_calibration_error(pooled_J),
    )


def _linear(dataset: EmbeddedDataset, rows: IntArray, matrix_KD: npt.NDArray[np.floating]) -> FloatArray:
    """Hidden states [N, D] of the rows times the matrix transposed, [N, K], without holding them all."""
    chunks = [rows[start : start + CHUNK_TEXTS] for start in range(0, len(rows), CHUNK_TEXTS)]
    right_DK = matrix_KD.astype(np.float64).T
    return np.concatenate([dataset.gather(chunk).astype(np.float64) @ right_DK for chunk in chunks])


def _percent(share: float) -> str:
    return f"{round(100 * share)}%"


def _compacted(users: Sequence[UnseenUser]) -> tuple[IntArray, list[UnseenUser]]:
    """The texts that the users mention, and the users over those texts alone."""
    columns = [
        column
        for user in users
        for column in (
            user.support_chosen_P,
            user.support_rejected_P,
            user.query_chosen_Q,
            user.query_rejected_Q,
        )
    ]
    rows = np.unique(np.concatenate(columns))
    return rows, [
        UnseenUser(
            user.user,
            np.searchsorted(rows, user.support_chosen_P),
            np.searchsorted(rows, user.support_rejected_P),
            user.support_strength_P,
            np.searchsorted(rows, user.query_chosen_Q),
            np.searchsorted(rows, user.query_rejected_Q),
        )
        for user in users
    ]
