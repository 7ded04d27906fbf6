"""Whether a user's taste has changed, and how much of what they once said still holds.

Three kinds of hypotheses, which span from nothing to everything forgotten:

- constant: all evidence counts alike;
- changed at a moment: what was told before it is another person's. The moments between two answers are tried. With Z(.)
  the evidence of a stretch of answers under the start's prior (Laplace's approximation, MacKay 1992), such a change
  gains log Z(before) + log Z(after) - log Z(all) nats on a constant taste;
- fading: an answer counts 2^(-age / half-life). Fading is no probability model of all answers, so it is judged by
  prediction (Dawid, *The prequential approach*, 1984): newer answers are predicted, block by block, from the older
  ones, and its gain on equal weights is added up over the newest blocks, from any block on. Half-lives are shares of
  the person's own span, in time and in numbers of answers, so that nobody's pace is assumed and bursts do no harm.

The kinds begin with even odds and share theirs equally among their members. So a gain must pay for the number of
things tried; below a threshold nothing is forgotten, and above it an answer counts with the probability that it still
holds: the mean, over hypotheses, of its weight under each. That is the step of variational Bayes for the weights.

Here, and here only, everything said counts as choices: strengths are left aside, and a rating is compared with the one
before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import expit, logsumexp

from service.mrm.evidence import distinct_weights
from service.mrm.state import FloatArray, GaussianStart, IntArray, Start, Support

FRACTIONS: Final = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""Half-lives to try, in spans of time and in spans of answers."""

THRESHOLD_NATS: Final = 1.0
"""What a change must have gained before anything is forgotten."""

LEAST_ITEMS: Final = 12
"""Below that many choices nothing can be said."""

LEAST_WEIGHT: Final = 1e-6
"""What is forgotten entirely still counts so much: weights are positive."""

LEAST_LEFT: Final = 3.0
"""A half-life that leaves a smaller sum of weights is no memory at all."""

APART: Final = 1.3
"""Half-lives nearer than that factor are the same hypothesis."""

LARGEST_BLOCK: Final = 8
WHOLE_ITEMS: Final = 400
"""Of older choices than that many, only some are looked at: as many again."""

ROUNDS: Final = 8
CLOSE: Final = 1e-4
"""The square of what may be left to a mode, in posterior standard deviations."""


@dataclass(frozen=True, slots=True)
class Drift:
    """What a user's history says about change.

    Attributes:
        score: Nats per recent choice by which fading predicts better than equal weights, 0 where it does not; None
            where there is too little to tell.
        gain_nats: Log-odds for a change of any kind; none is assumed below the threshold.
        half_life: The best half-life, in the unit of the ages; None where no change is assumed. `weights` forgets
            better: after a sudden change it keeps all that came later.
        newest_age: Age of the newest choice, which always counts whole.
        since: Ages of what came first after a change, and the probability of each.
        fading: Half-lives, and the probability of each.
    """

    score: float | None = None
    gain_nats: float = 0.0
    half_life: float | None = None
    newest_age: float = 0.0
    since: tuple[tuple[float, float], ...] = ()
    fading: tuple[tuple[float, float], ...] = ()

    def weights(self, ages_N: FloatArray) -> FloatArray:
        """What answers of these ages count, [N], above 0 and at most 1; all 1 where no change is assumed."""
        weights_N = np.ones(len(ages_N))
        for first_age, probability in self.since:
            weights_N -= probability * (ages_N > first_age)
        for half_life, probability in self.fading:
            weights_N -= probability * (1.0 - np.exp2(-np.maximum(ages_N - self.newest_age, 0.0) / half_life))
        return np.maximum(weights_N, LEAST_WEIGHT)


@dataclass(frozen=True, slots=True)
class _Items:
    """Choices, oldest first: differences [N, K], weights, tilts and ages [N]."""

    diffs_NK: FloatArray
    weights_N: FloatArray
    tilts_N: FloatArray
    ages_N: FloatArray

    def __len__(self) -> int:
        return len(self.ages_N)

    def losses(self, v_JK: FloatArray) -> FloatArray:
        """Nats that each choice costs under each of J weights, [J, N]."""
        logits_JN = v_JK @ self.diffs_NK.T
        return np.asarray(np.logaddexp(0.0, -logits_JN) - self.tilts_N * logits_JN)


def assess(support: Support, ages_P: FloatArray, start: Start, ages_R: FloatArray | None = None) -> Drift:
    """Compare a constant taste with a changing one on what the user told: a pure function of the set.

    Args:
        support: What the user told, undecayed: weights are those of the statements themselves.
        ages_P: How long ago each row of a choice was told, [P]; any unit, any origin.
        start: The checkpoint's. The softmax recipe hardly moves, so nothing is said of its users.
        ages_R: How long ago each rating was given, [R]; None only where there are no ratings.

    Raises:
        ValueError: Ages do not fit the support, or are not finite.
    """
    ages_R = np.zeros(0) if ages_R is None else ages_R
    if ages_P.shape != support.weights_P.shape or ages_R.shape != support.ratings_R.shape:
        raise ValueError(
            f"expected ages {support.weights_P.shape} of choices and {support.ratings_R.shape} of ratings, "
            f"got {ages_P.shape} and {ages_R.shape}"
        )
    if not (np.isfinite(ages_P).all() and np.isfinite(ages_R).all()):
        raise ValueError("ages must be finite numbers")
    if not isinstance(start, GaussianStart):
        return Drift()
    items = _items(support, ages_P, ages_R)
    if len(items) < LEAST_ITEMS:
        return Drift()
    half_lives_H, cuts_C = _half_lives(items.ages_N), _cuts(items.ages_N)
    if not len(half_lives_H) or not len(cuts_C):
        return Drift(score=0.0)
    edges = _edges(len(items))
    # gains over the newest blocks, from each on
    faded_HB = np.cumsum(_faded(items, half_lives_H, edges, start)[:, ::-1], axis=1)[:, ::-1]
    recent = int(np.searchsorted(edges, len(items) - len(items) // 4, side="right")) - 1
    gained = float(logsumexp(faded_HB[:, recent]) - np.log(len(half_lives_H)))
    score = max(0.0, gained / int(len(items) - edges[recent]))

    faded_HB = faded_HB - np.log(2 * faded_HB.size)
    changed_C = _changed(items, cuts_C, start) - np.log(2 * len(cuts_C))
    gain_nats = float(logsumexp(np.concatenate([faded_HB.ravel(), changed_C])))
    if gain_nats <= THRESHOLD_NATS:
        return Drift(score, gain_nats)
    everything = np.logaddexp(0.0, gain_nats)
    faded_H = np.exp(logsumexp(faded_HB, axis=1) - everything)
    since_C = np.exp(changed_C - everything)
    return Drift(
        score,
        gain_nats,
        float(half_lives_H[np.argmax(faded_H)]),
        float(items.ages_N[-1]),
        _likely(items.ages_N[cuts_C], since_C),
        _likely(half_lives_H, faded_H),
    )


def _likely(values: FloatArray, probabilities: FloatArray) -> tuple[tuple[float, float], ...]:
    pairs = zip(values.tolist(), probabilities.tolist(), strict=True)
    return tuple((value, probability) for value, probability in pairs if probability >= LEAST_WEIGHT)


def _items(support: Support, ages_P: FloatArray, ages_R: FloatArray) -> _Items:
    """Everything as choices, oldest first, those of one age in an order of their values; the oldest thinned."""
    newer, older = _consecutive(support, ages_R)
    sign_Q = np.sign(support.ratings_R[newer] - support.ratings_R[older])
    diffs_NK = np.concatenate([support.diffs_PK, sign_Q[:, None] * (support.rated_RK[newer] - support.rated_RK[older])])
    ages_N = np.concatenate([ages_P, ages_R[newer]])
    weights_N = np.concatenate([support.weights_P, np.minimum(support.weights_R[newer], support.weights_R[older])])
    tilts_N = np.concatenate([support.tilts_P, np.zeros(len(newer))])
    weights_N = distinct_weights(diffs_NK, weights_N)
    order = np.lexsort((tilts_N, weights_N, *diffs_NK.T, -ages_N))
    if len(order) > WHOLE_ITEMS:
        stride = -(-(len(order) - WHOLE_ITEMS) // WHOLE_ITEMS)
        thinned = order[:-WHOLE_ITEMS][::-1][::stride][::-1]
        order = np.concatenate([thinned, order[-WHOLE_ITEMS:]])
    return _Items(diffs_NK[order], weights_N[order], tilts_N[order], ages_N[order])


def _consecutive(support: Support, ages_R: FloatArray) -> tuple[IntArray, IntArray]:
    """Ratings that differ from the one of their group before them, and that one."""
    order = np.lexsort((support.ratings_R, *support.rated_RK.T, -ages_R, support.groups_R))
    newer, older = order[1:], order[:-1]
    tells = (support.groups_R[newer] == support.groups_R[older]) & (
        support.ratings_R[newer] != support.ratings_R[older]
    )
    return newer[tells], older[tells]


def _half_lives(ages_N: FloatArray) -> FloatArray:
    """Half-lives worth trying, the longest first; none where everything was told at once."""
    since_N = ages_N - ages_N[-1]
    if not since_N[0] > 0.0:
        return np.zeros(0)
    by_answers = [since_N[len(since_N) - max(1, round(share * len(since_N)))] for share in FRACTIONS]
    found: list[float] = []
    for half_life in sorted([share * since_N[0] for share in FRACTIONS] + by_answers, reverse=True):
        near = bool(found) and half_life * APART > found[-1]
        if half_life > 0.0 and not near and np.exp2(-since_N / half_life).sum() >= LEAST_LEFT:
            found.append(float(half_life))
    return np.array(found)


def _cuts(ages_N: FloatArray) -> IntArray:
    """First choices after a change, newest first: every one at the end, then ever fewer; never within one moment."""
    cuts, place = [], len(ages_N) - 1
    while place >= max(2, len(ages_N) // 8):
        cuts.append(place)
        place -= max(1, (len(ages_N) - place) // 6)
    # the first choice of the moment that a cut falls into
    first_N = len(ages_N) - np.searchsorted(ages_N[::-1], ages_N, side="right")
    found = np.unique(first_N[cuts])[::-1]
    return np.asarray(found[found >= 2], dtype=np.int64)


def _edges(count: int) -> IntArray:
    """Where blocks begin, ascending, and `count`: small ones at the end, where a change is to be seen soon."""
    size = min(LARGEST_BLOCK, max(1, count // 40))
    edges = [count]
    while edges[-1] > count // 2:
        edges.append(max(edges[-1] - size, count // 4))
        if len(edges) >= 5 and len(edges) % 2 == 1:
            size *= 2
    return np.array(edges[::-1], dtype=np.int64)


def _faded(items: _Items, half_lives_H: FloatArray, edges: IntArray, start: GaussianStart) -> FloatArray:
    """Nats by which each half-life predicts each block better than equal weights do, from what came before: [H, B]."""
    blocks = len(edges) - 1
    place_N = np.arange(len(items))
    before_BN = place_N < edges[:-1, None]
    since_BN = np.maximum(items.ages_N - items.ages_N[edges[:-1] - 1][:, None], 0.0)
    decay_HBN = np.concatenate([np.ones((1, blocks, len(items))), np.exp2(-since_BN / half_lives_H[:, None, None])])
    weights_JN = (decay_HBN * (before_BN * items.weights_N)).reshape(-1, len(items))
    v_JK, _ = _modes(items, weights_JN, start)
    loss_JN = items.weights_N * items.losses(v_JK / start.temperature)
    within_BN = ~before_BN & (place_N < edges[1:, None])
    loss_HB = (loss_JN.reshape(decay_HBN.shape) * within_BN).sum(axis=2)
    return np.asarray(loss_HB[0] - loss_HB[1:])


def _changed(items: _Items, cuts_C: IntArray, start: GaussianStart) -> FloatArray:
    """Nats by which two tastes, one before each cut and one from it on, explain everything better than one: [C]."""
    after_CN = np.arange(len(items)) >= cuts_C[:, None]
    weights_JN = items.weights_N * np.concatenate([np.ones((1, len(items))), ~after_CN, after_CN])
    v_JK, hessian_JKK = _modes(items, weights_JN, start)
    delta_JK = v_JK - start.mean_K
    evidence_J = -np.einsum("jn,jn->j", weights_JN, items.losses(v_JK))
    evidence_J -= 0.5 * np.einsum("jk,jk->j", delta_JK @ start.precision_KK, delta_JK)
    evidence_J -= 0.5 * (np.linalg.slogdet(hessian_JKK)[1] - np.linalg.slogdet(start.precision_KK)[1])
    return np.asarray(evidence_J[1 : 1 + len(cuts_C)] + evidence_J[1 + len(cuts_C) :] - evidence_J[0])


def _modes(items: _Items, weights_JN: FloatArray, start: GaussianStart) -> tuple[FloatArray, FloatArray]:
    """MAP weights v [J, K] of the same choices under J weightings, and the Hessians there, by Newton's method.

    Steps are cut to log(1 + r) / r with r the largest change of a logit: that keeps every one a descent (Bach,
    *Self-concordant analysis for logistic regression*, 2010). All begin at the mode of all choices.
    """
    rows, columns = np.triu_indices(start.heads)
    table_NF = items.diffs_NK[:, rows] * items.diffs_NK[:, columns]
    place_KK = np.zeros((start.heads, start.heads), np.int64)
    place_KK[rows, columns] = place_KK[columns, rows] = np.arange(len(rows))

    def newton(v_JK: FloatArray, weights_JN: FloatArray) -> tuple[FloatArray, FloatArray]:
        for round_ in range(ROUNDS):
            wrong_JN = expit(-(v_JK @ items.diffs_NK.T))
            gradient_JK = (v_JK - start.mean_K) @ start.precision_KK
            gradient_JK -= (weights_JN * (wrong_JN + items.tilts_N)) @ items.diffs_NK
            hessian_JF = (weights_JN * wrong_JN * (1.0 - wrong_JN)) @ table_NF
            hessian_JKK = hessian_JF[:, place_KK] + start.precision_KK
            step_JK = np.linalg.solve(hessian_JKK, gradient_JK[:, :, None])[:, :, 0]
            if np.einsum("jk,jk->j", gradient_JK, step_JK).max() < CLOSE or round_ == ROUNDS - 1:
                break
            moved_J = np.abs(step_JK @ items.diffs_NK.T * (weights_JN > 0.0)).max(axis=1)
            v_JK = v_JK - (np.log1p(moved_J) / np.maximum(moved_J, 1e-12))[:, None] * step_JK
        return v_JK, hessian_JKK

    first_1K, _ = newton(start.mean_K[None], items.weights_N[None])
    return newton(np.repeat(first_1K, len(weights_JN), axis=0), weights_JN)
