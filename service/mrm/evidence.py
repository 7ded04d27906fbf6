"""From what a user told to likelihood terms: weighted choices and Gaussian observations of logits.

One random-utility model serves every kind of evidence. A text's utility is its reward plus a noise of its own,
u = phi . v + eps, with eps of Gumbel's variance pi^2 / 6 (Luce 1959; Train, *Discrete Choice Methods*, chapter 3):

- a choice compares two utilities: P(a over b) = sigmoid((phi_a - phi_b) . v), exactly for Gumbel noise;
- a rating reports one utility on the user's own scale: gain (y - mean y) / std y = (phi - mean phi) . v + noise, means
  over the ratings of one group (one prompt's, say), the noise taken as Gaussian with variance pi^2 / 6;
- a choice with a strength reports a difference of two: gain sqrt(2) s / rms s = d . v + noise of variance pi^2 / 3.

The user's mean and spread are the user's own, so any affine scale of ratings gives the same answer. Strengths that do
not differ from one another say nothing beyond the choice, and neither do ratings that are all the same.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from service.mrm.stages import SAME, Stages
from service.mrm.state import FloatArray, IntArray, Support

NOISE_VARIANCE: Final = np.pi**2 / 6
"""Variance of a text's own noise, in squared logits."""

LARGEST_RATIO: Final = 4.0
"""A strength counts at most as that many median ones: one careless number must not set the scale of all others."""

LARGEST: Final = 1e100
"""Base rewards beyond this have squares that overflow."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Comparisons under the logistic likelihood.

    Attributes:
        diffs_PK: Chosen minus rejected, of choices between two.
        weights_P: Weights of their log-likelihoods.
        pull_K: The sum of weight times tilt times difference over all rows: what v is pulled along, whatever it is;
            None where nothing is tilted.
        stages: Choices among several; None where there are none.
    """

    diffs_PK: FloatArray
    weights_P: FloatArray
    pull_K: FloatArray | None = None
    stages: Stages | None = None


@dataclass(frozen=True, slots=True)
class Observations:
    """Logits seen with Gaussian noise.

    Attributes:
        rows_QK: What v is multiplied with.
        targets_Q: Observed logits.
        variances_Q: Variances of their noise.
    """

    rows_QK: FloatArray
    targets_Q: FloatArray
    variances_Q: FloatArray

    def __len__(self) -> int:
        return len(self.targets_Q)


def terms(support: Support, rating_gain: float | None) -> tuple[Choices, Observations]:
    """Likelihood terms of a user's evidence.

    Args:
        support: What the user told.
        rating_gain: The start's; None makes choices of strengths and of ratings.

    Raises:
        ValueError: Base rewards are too large to solve with.
    """
    for numbers in (support.diffs_PK, support.rated_RK):
        if numbers.size and max(numbers.max(), -numbers.min()) > LARGEST:
            raise ValueError(f"base rewards beyond {LARGEST:g} are too large to solve with")
    if rating_gain is None:
        return choices_of(with_ordered_pairs(support)), _nothing(support.heads)
    grades_P = _relative(support.strengths_P, support.weights_P)
    if grades_P is None and not len(support.ratings_R):
        return choices_of(support), _nothing(support.heads)
    graded_P = np.zeros(len(support.diffs_PK), bool) if grades_P is None else ~np.isnan(grades_P)
    graded_PK, weights_G = support.diffs_PK[graded_P], support.weights_P[graded_P]
    grades_G = np.zeros(0) if grades_P is None else grades_P[graded_P] * (1.0 + 2.0 * support.tilts_P[graded_P])
    rated_RK, scores_R, weights_R = _standardised(support)
    return choices_of(support, ~graded_P), Observations(
        np.concatenate([graded_PK, rated_RK]),
        rating_gain * np.concatenate([np.sqrt(2.0) * grades_G, scores_R]),
        NOISE_VARIANCE * np.concatenate([2.0 / distinct_weights(graded_PK, weights_G), 1.0 / weights_R]),
    )


def choices_of(support: Support, taken_P: npt.NDArray[np.bool_] | None = None, distinct: bool = True) -> Choices:
    """The choices of a support, its strengths and ratings left aside.

    Args:
        support: What the user told.
        taken_P: Which choices between two are meant; None: all. Choices among several always are.
        distinct: Let repeated choices share a weight.
    """
    diffs_PK, weights_P, tilts_P, shared_P = support.diffs_PK, support.weights_P, support.tilts_P, support.shared
    stages: Stages | None = None
    pull_K = np.zeros(support.heads) if tilts_P.any() else None
    if shared_P.any():
        stages, tilts_J = _stages_of(support, shared_P, distinct)
        if pull_K is not None:
            pull_K += (stages.weights_S[stages.stage_J] * tilts_J) @ stages.rows_JK
        taken_P = ~shared_P if taken_P is None else taken_P & ~shared_P
    if taken_P is not None:
        diffs_PK, weights_P, tilts_P = diffs_PK[taken_P], weights_P[taken_P], tilts_P[taken_P]
    if distinct:
        weights_P = distinct_weights(diffs_PK, weights_P)
    if pull_K is not None:
        pull_K += (weights_P * tilts_P) @ diffs_PK
    return Choices(diffs_PK, weights_P, pull_K, stages)


def _stages_of(support: Support, shared_P: npt.NDArray[np.bool_], distinct: bool) -> tuple[Stages, FloatArray]:
    """Stages of several rows, and the tilts of their rows."""
    rows = np.flatnonzero(shared_P)
    rows = rows[np.argsort(support.stages_P[rows], kind="stable")]
    stages = Stages.of(support.diffs_PK[rows], support.weights_P[rows], support.stages_P[rows])
    if distinct:
        stages = dataclasses.replace(stages, weights_S=distinct_stage_weights(stages))
    return stages, support.tilts_P[rows]


def with_ordered_pairs(support: Support) -> Support:
    """The support with the choices that its ratings imply in place of them: higher rated over lower, by groups.

    Two ratings of weights a and b imply a choice of 2 / (1 / a + 1 / b): the variances of their noise add up.
    """
    if not len(support.ratings_R):
        return support
    ratings_R, groups_R, weights_R = support.ratings_R, support.groups_R, support.weights_R
    better, worse = np.nonzero(
        (ratings_R[:, None] > ratings_R[None, :]) & (groups_R[:, None] == groups_R[None, :]),
    )
    implied = len(better)
    next_stage = int(support.stages_P.max(initial=-1)) + 1
    return Support.of(
        np.concatenate([support.diffs_PK, support.rated_RK[better] - support.rated_RK[worse]]),
        np.concatenate([support.strengths_P, np.full(implied, np.nan)]),
        weights_P=np.concatenate([support.weights_P, 2.0 / (1.0 / weights_R[better] + 1.0 / weights_R[worse])]),
        tilts_P=np.concatenate([support.tilts_P, np.zeros(implied)]),
        stages_P=np.concatenate([support.stages_P, next_stage + np.arange(implied)]),
    )


def _relative(strengths_P: FloatArray, weights_P: FloatArray) -> FloatArray | None:
    """Strengths over their root mean square, [P], NaN where there is none; None where they do not differ."""
    given_P = ~np.isnan(strengths_P)
    given = np.sort(strengths_P[given_P])
    if not len(given) or given[-1] * (1.0 - 1e-9) <= given[0]:
        return None
    low, high = given[(len(given) - 1) // 2], given[len(given) // 2]
    # neither half of the sum nor the sum of halves: the one overflows, the other may be zero
    median = low + (high - low) / 2
    with np.errstate(over="ignore"):
        clipped_P = np.minimum(strengths_P / median, LARGEST_RATIO)
    return np.asarray(clipped_P / np.sqrt(np.nansum(weights_P * clipped_P**2) / weights_P[given_P].sum()))


def _standardised(support: Support) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Base rewards [R, K] and ratings [R], centred by group, the ratings over their spread, and weights [R].

    None where ratings are equal. Centring both marginalises the level of every group out: it has a flat prior. Means
    and spread are weighted, the spread's degrees of freedom sum_g (W - sum w^2 / W) with W the sum of a group's w.
    """
    rated_RK, weights_R = support.rated_RK, support.weights_R
    none = np.zeros((0, support.heads)), np.zeros(0), np.zeros(0)
    if not len(rated_RK):
        return none
    groups, group_R = np.unique(support.groups_R, return_inverse=True)
    # halves, because the span may overflow; from each group's lowest, because a level may be larger than all spans
    half_R = support.ratings_R / 2
    lowest_G = np.full(len(groups), np.inf)
    np.minimum.at(lowest_G, group_R, half_R)
    above_R = half_R - lowest_G[group_R]
    total_G = np.bincount(group_R, weights_R)
    freedom_G = total_G - np.bincount(group_R, weights_R**2) / total_G
    # where all but one rating of a group weigh nothing, this is what rounding left
    freedom = float(freedom_G[freedom_G > 1e-9 * total_G].sum())
    if freedom == 0.0 or above_R.max() <= 1e-12 * np.abs(half_R).max():
        return none
    # over the largest before anything is squared
    above_R = above_R / above_R.max()
    sum_GK = np.zeros((len(groups), support.heads))
    np.add.at(sum_GK, group_R, weights_R[:, None] * rated_RK)
    centred_R = above_R - (np.bincount(group_R, weights_R * above_R) / total_G)[group_R]
    spread = np.sqrt((weights_R * centred_R) @ centred_R / freedom)
    return rated_RK - (sum_GK / total_G[:, None])[group_R], centred_R / spread, weights_R


def distinct_weights(diffs_PK: FloatArray, weights_P: FloatArray) -> FloatArray:
    """What each choice between two [P, K] counts, [P]: choices between the same two share the largest of their weights.

    In proportion to their weights, contrary answers too; n copies of weight 1 count 1 / n each.

    The noise of a text belongs to the person and the text: asking again does not draw it again, so a repeated answer is
    the same evidence. It also bounds what a thousand copies of one pair can do.

    Rows are told apart by their places along a few fixed directions. Two that differ are next to each other along
    all of them only by an accident that does not happen.
    """
    if len(diffs_PK) < 2:
        return weights_P
    places_DP = directions(diffs_PK.shape[1]) @ diffs_PK.T
    # a contrary answer has the same place
    places_DP *= np.where(places_DP[0] < 0, -1.0, 1.0)
    return _shared(weights_P, places_DP, SAME * np.abs(diffs_PK).max(axis=1), np.zeros(len(diffs_PK), np.int64))


def distinct_stage_weights(stages: Stages) -> FloatArray:
    """`distinct_weights` of choices among several: those from the same texts share a weight, whichever was taken.

    Texts are told apart by where they lie around the middle of their stage: sorted along each direction, so that it
    does not matter which was taken, and added up with fixed factors.
    """
    if len(stages.first_S) < 2:
        return stages.weights_S
    places_DS = np.empty((3, len(stages.first_S)))
    same_S = np.empty(len(stages.first_S))
    for length in np.unique(stages.lengths).tolist():
        of_length = np.flatnonzero(stages.lengths == length)
        rows_SNK = stages.rows_JK[stages.first_S[of_length][:, None] + np.arange(length)]
        # the taken text is where its difference from itself is: at zero
        texts_SNK = np.pad(-rows_SNK, ((0, 0), (1, 0), (0, 0)))
        texts_SNK -= texts_SNK.mean(axis=1, keepdims=True)
        along_SND = np.sort(texts_SNK @ directions(texts_SNK.shape[2]).T, axis=1)
        places_DS[:, of_length] = np.einsum("snd,n->ds", along_SND, _factors(length + 1))
        same_S[of_length] = SAME * np.abs(texts_SNK).max(axis=(1, 2))
    return _shared(stages.weights_S, places_DS, same_S, stages.lengths)


def _shared(weights_P: FloatArray, places_DP: FloatArray, same_P: FloatArray, group_P: IntArray) -> FloatArray:
    """Weights, each group of the same place sharing its largest; those of different `group_P` are not the same."""
    for places_P in places_DP:
        order = np.lexsort((places_P, group_P))
        apart = np.diff(places_P[order]) > same_P[order[1:]]
        apart |= np.diff(group_P[order]) > 0
        if apart.all():
            return weights_P
        group_P = np.empty_like(group_P)
        group_P[order[1:]] = np.cumsum(apart)
        group_P[order[0]] = 0
    largest_G = np.zeros(len(group_P))
    np.maximum.at(largest_G, group_P, weights_P)
    sum_G = np.bincount(group_P, weights_P)
    return np.asarray(weights_P * (largest_G[: len(sum_G)] / sum_G)[group_P])


@functools.cache
def directions(heads: int) -> FloatArray:
    """Three fixed directions [3, K]: comparisons are looked for along them."""
    return np.random.default_rng(0).normal(size=(3, heads))


@functools.cache
def _factors(texts: int) -> FloatArray:
    return np.asarray(np.random.default_rng(1).normal(size=texts) / np.sqrt(texts))


def _nothing(heads: int) -> Observations:
    return Observations(np.zeros((0, heads)), np.zeros(0), np.zeros(0))
