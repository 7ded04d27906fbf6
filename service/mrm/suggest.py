"""Which comparison to ask a user next: the one whose answer says most about their weights.

The posterior of a reward difference x = d . w is N(mu, s^2). Its answer y, yes with probability sigmoid(x), carries

    gain(d) = I(y; w) = H(E sigmoid(x)) - E H(sigmoid(x))      nats, H the entropy of a coin

(Lindley 1956; Houlsby et al., *Bayesian active learning for classification and preference learning*, 2011, who name it
BALD): what is uncertain because the taste is unknown counts, what the person is undecided about does not.

Several questions are chosen one after the other. An answer that is still to come moves no mean, but it leaves less
open: the posterior precision grows by the expected Fisher information E[sigmoid'(x)] d d^T of each question chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtr, xlog1py, xlogy

from service.mrm.evidence import directions
from service.mrm.stages import SAME
from service.mrm.state import FloatArray, IntArray, UserState, unpack_factor

WIDE: Final = 2.0
"""From this deviation of a logit on, the entropy of a coin is the narrower of the two factors of the integrals."""

PROBIT_WIDTH: Final = 1.7
"""Phi(x / 1.7) is the sigmoid to 0.01."""

LAZY_CHUNK: Final = 128
"""Gains computed at once while the largest is looked for."""

LEAST_GAIN: Final = 1e-9
"""A question that says less, in nats, is none: two texts that are the same, or a reward that is known."""

# Sums over equal steps h: for a function that decays and has its nearest pole at a distance r from the axis, they are
# right to exp(-2 pi r / h). The sigmoid's poles are at i pi.
_POINTS: Final = np.arange(-16, 17) / 2.0
_WEIGHTS: Final = 0.5 * np.exp(-0.5 * _POINTS**2) / np.sqrt(2.0 * np.pi)
_LOGITS: Final = np.arange(-40.0, 41.0)


class NoPosterior(ValueError):
    """The user's recipe keeps no posterior, so nothing says what is uncertain about them."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One question worth asking.

    Attributes:
        index: Row of the candidates.
        gain_nats: What its answer is expected to tell beyond the answers of the suggestions before it; ln 2 at most.
        probability: Probability that the user prefers the first text, as scores give it: sigmoid of the difference.
    """

    index: int
    gain_nats: float
    probability: float


def suggest(
    diffs_CK: FloatArray,
    state: UserState,
    count: int,
    asked_PK: FloatArray | None = None,
    texts_C2: IntArray | None = None,
) -> list[Suggestion]:
    """Choose up to `count` comparisons greedily by what they are expected to tell together.

    The same comparison, either way round, is suggested once, and not at all if it was answered before. There are fewer
    suggestions than asked for where nothing else would tell anything.

    What a person thinks of a text beyond its base rewards is drawn once: of two questions about one text the second
    tells less than the posterior believes. So where texts are named, those in the fewest questions so far come first;
    answered comparisons that are among the candidates are such questions too.

    Args:
        diffs_CK: Base-reward differences of the candidates, first text minus second.
        state: The user's.
        count: How many questions, at least 1.
        asked_PK: Comparisons that the user has answered.
        texts_C2: A number for each of the two texts of each candidate, from 0.

    Raises:
        NoPosterior: The state has no posterior.
        ValueError: Shapes do not fit, numbers are not finite, or `count` is below 1.
    """
    if state.factor is None:
        raise NoPosterior(
            "suggestions need a posterior, which a softmax_adam checkpoint does not have: serve one of the map recipe"
        )
    heads = len(state.weights_K)
    if diffs_CK.ndim != 2 or diffs_CK.shape[1] != heads or (asked_PK is not None and asked_PK.shape[1:] != (heads,)):
        raise ValueError(f"expected candidates and answered comparisons [*, {heads}], got {diffs_CK.shape}")
    if not np.isfinite(diffs_CK).all():
        raise ValueError("the candidates hold numbers that are not finite")
    if texts_C2 is not None and (texts_C2.shape != (len(diffs_CK), 2) or texts_C2.min(initial=0) < 0):
        raise ValueError(f"expected numbers of texts [{len(diffs_CK)}, 2] from 0, got {texts_C2.shape}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    spread_CK = diffs_CK @ unpack_factor(state.factor)
    mean_C, variance_C = diffs_CK @ state.weights_K, np.einsum("ck,ck->c", spread_CK, spread_CK)
    gain_C, fisher_C = information(mean_C, np.sqrt(variance_C))
    uses_C = np.zeros(len(diffs_CK), np.int64)
    if asked_PK is not None:
        asked_C = among(diffs_CK, asked_PK)
        gain_C[asked_C] = 0.0
        if texts_C2 is not None and asked_C.any():
            uses_C = np.bincount(texts_C2[asked_C].ravel(), minlength=texts_C2.max() + 1)[texts_C2].sum(axis=1)
    # the posterior in coordinates in which it is the unit ball at first
    covariance_KK = np.eye(heads)
    chosen: list[Suggestion] = []
    while (best := _best(gain_C, fisher_C, mean_C, variance_C, uses_C)) is not None:
        chosen.append(Suggestion(best, float(gain_C[best]), float(expit(mean_C[best]))))
        if len(chosen) == count:
            break
        gain_C[among(diffs_CK, diffs_CK[best : best + 1])] = 0.0
        moved_K = covariance_KK @ spread_CK[best]
        share = fisher_C[best] / (1.0 + fisher_C[best] * float(moved_K @ spread_CK[best]))
        covariance_KK = covariance_KK - share * np.outer(moved_K, moved_K)
        variance_C = np.maximum(variance_C - share * (spread_CK @ moved_K) ** 2, 0.0)
        if texts_C2 is not None:
            uses_C += np.isin(texts_C2, texts_C2[best]).sum(axis=1)
    return chosen


def information(mean_C: FloatArray, std_C: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What the answers to choices are expected to tell.

    Args:
        mean_C: Means of the logits x, Gaussian.
        std_C: Their standard deviations.

    Returns:
        Mutual information of answer and logit in nats, [C], and expected Fisher information E[sigmoid'(x)], [C]; both
        right to 1e-7.
    """
    gain_C, fisher_C = np.zeros_like(mean_C), np.zeros_like(mean_C)
    wide_C = std_C > WIDE
    narrow_C = ~wide_C
    if narrow_C.any():
        # of the rarer answer, whose probability has the digits
        logits_NX = std_C[narrow_C, None] * _POINTS - np.abs(mean_C[narrow_C, None])
        wrong_NX, unsure_NX = _coin(logits_NX)
        rarer_N = np.where(logits_NX < 0, wrong_NX, 1.0 - wrong_NX) @ _WEIGHTS
        gain_C[narrow_C] = _entropy(rarer_N) - unsure_NX @ _WEIGHTS
        fisher_C[narrow_C] = (wrong_NX * (1.0 - wrong_NX)) @ _WEIGHTS
    if wide_C.any():
        mean_W, std_W = mean_C[wide_C], std_C[wide_C]
        density_WX = np.exp(-0.5 * ((_LOGITS - mean_W[:, None]) / std_W[:, None]) ** 2)
        density_WX /= np.sqrt(2.0 * np.pi) * std_W[:, None]
        wrong_X, unsure_X = _coin(_LOGITS)
        # a probit is known in closed form; what the sigmoid differs by decays like the entropy
        differs_X = expit(_LOGITS) - ndtr(_LOGITS / PROBIT_WIDTH)
        probability_W = ndtr(mean_W / np.hypot(PROBIT_WIDTH, std_W)) + density_WX @ differs_X
        gain_C[wide_C] = _entropy(np.clip(probability_W, 0.0, 1.0)) - density_WX @ unsure_X
        fisher_C[wide_C] = density_WX @ (wrong_X * (1.0 - wrong_X))
    return np.maximum(gain_C, 0.0), fisher_C


def _coin(logits: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Probability of the less probable side, and the entropy log(1 + e^-|x|) + |x| p of the coin."""
    size = np.abs(logits)
    small = np.exp(-size)
    wrong = small / (1.0 + small)
    return wrong, np.log1p(small) + size * wrong


def _entropy(probability_C: FloatArray) -> FloatArray:
    return np.asarray(-xlogy(probability_C, probability_C) - xlog1py(1.0 - probability_C, -probability_C))


def _best(
    gain_C: FloatArray, fisher_C: FloatArray, mean_C: FloatArray, variance_C: FloatArray, uses_C: IntArray
) -> int | None:
    """The candidate that tells most among those whose texts were used least; None where nothing tells anything.

    Gains are brought up to date, in place, until the largest is. They only fall: at a given mean the information grows
    with the deviation, and answers elsewhere narrow it. So a gain of before bounds the one of now (Minoux's lazy
    greedy, 1978).
    """
    while (left := np.flatnonzero(gain_C >= LEAST_GAIN)).size:
        left = left[uses_C[left] == uses_C[left].min()]
        order = left[np.argsort(-gain_C[left], kind="stable")]
        best, largest = -1, LEAST_GAIN
        for first in range(0, len(order), LAZY_CHUNK):
            chunk = order[first : first + LAZY_CHUNK]
            if gain_C[chunk[0]] <= largest:
                break
            gain_C[chunk], fisher_C[chunk] = information(mean_C[chunk], np.sqrt(variance_C[chunk]))
            at = int(chunk[np.argmax(gain_C[chunk])])
            if gain_C[at] > largest:
                best, largest = at, float(gain_C[at])
        if best >= 0:
            return best
        gain_C[left] = 0.0
    return None


def among(diffs_CK: FloatArray, others_PK: FloatArray) -> npt.NDArray[np.bool_]:
    """Which comparisons are also among others, either way round, by the tolerance of repeated answers, [C].

    Along a fixed direction the same comparisons have the same place; those that share one are looked at whole.
    """
    found_C = np.zeros(len(diffs_CK), bool)
    direction_K = directions(diffs_CK.shape[1])[0]
    place_P = np.abs(others_PK @ direction_K)
    order = np.argsort(place_P)
    place_C, size_C = np.abs(diffs_CK @ direction_K), SAME * np.abs(diffs_CK).max(axis=1, initial=0.0)
    reach_C = size_C * np.abs(direction_K).sum()
    first_C = np.searchsorted(place_P[order], place_C - reach_C)
    end_C = np.searchsorted(place_P[order], place_C + reach_C, side="right")
    for row in np.flatnonzero(end_C > first_C).tolist():
        near_NK = others_PK[order[first_C[row] : end_C[row]]]
        apart_N = np.minimum(np.abs(near_NK - diffs_CK[row]).max(axis=1), np.abs(near_NK + diffs_CK[row]).max(axis=1))
        found_C[row] = bool((apart_N <= size_C[row]).any())
    return found_C
