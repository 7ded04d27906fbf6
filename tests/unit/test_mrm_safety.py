"""Whatever a user says, adaptation stays finite, bounded, and no worse than the start.

By design: the MAP objective J(v) = 1/2 |v - m|_P^2 + L(v), with L >= 0 convex, is P-strongly convex. For its minimum v
that gives J(m) >= J(v) + 1/2 |v - m|_P^2, hence

    |v - m|_P^2 <= 2 (J(m) - J(v)) <= 2 J(m)

and J(m) is what the evidence speaks against the start: log 2 a pair at most where the start is indifferent. Repeated
answers share the weight of one, so copies do not raise it. Tilts above 0 (careless answers) subtract from L; what is
left then is |v - m|_P <= |J'(m)|_{P^-1}, and of choices no row pulls more than its weight times (1 + |tilt|) |d|.
"""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
from scipy.special import expit

from service.mrm import GaussianStart, SoftmaxStart, Support, solve
from service.mrm.evidence import terms
from service.mrm.state import UserState, unpack_factor
from service.mrm.statements import flip_noise, ranking_stages

HEADS = 6
RNG = np.random.default_rng(0)
PAIRS = RNG.normal(size=(20, HEADS))
MEAN = np.array([1.0, -0.5, 0.3, 0.0, 0.2, 0.0])


def start(gain: float | None = 0.7) -> GaussianStart:
    root = np.random.default_rng(1).normal(size=(HEADS, HEADS)) * 0.3
    return GaussianStart(MEAN, root @ root.T + 2.0 * np.eye(HEADS), 1.2, gain)


def ratings_of(values: list[float]) -> Support:
    rows = np.random.default_rng(2).normal(size=(len(values), HEADS))
    return Support.of(np.zeros((0, HEADS)), None, rows, values)


def several(diffs: np.ndarray, lengths: list[int]) -> Support:
    """Choices among several texts."""
    return Support.of(diffs[: sum(lengths)], stages_P=np.repeat(np.arange(len(lengths)), lengths))


HOSTILE = {
    "one pair": Support.of(PAIRS[:1]),
    "a over b and b over a": Support.of(np.concatenate([PAIRS[:1], -PAIRS[:1]])),
    "every pair both ways": Support.of(np.concatenate([PAIRS, -PAIRS])),
    "one pair ten thousand times": Support.of(np.repeat(PAIRS[:1], 10_000, axis=0)),
    "one graded pair ten thousand times": Support.of(
        np.concatenate([np.repeat(PAIRS[:1], 10_000, axis=0), PAIRS[1:]]), np.linspace(1.0, 5.0, 10_019)
    ),
    "against the start": Support.of(-PAIRS * np.sign(PAIRS @ MEAN)[:, None]),
    "ten thousand random pairs": Support.of(np.random.default_rng(3).normal(size=(10_000, HEADS))),
    "constant pairs": Support.of(np.zeros((50, HEADS))),
    "constant graded pairs": Support.of(np.zeros((50, HEADS)), np.linspace(1.0, 2.0, 50)),
    "differences of 1e6": Support.of(1e6 * PAIRS),
    "contrary differences of 1e6": Support.of(1e6 * np.concatenate([PAIRS, -PAIRS[::-1] + 1e-3])),
    "differences of 1e-300": Support.of(1e-300 * PAIRS),
    "one huge strength": Support.of(PAIRS, [*np.full(19, 1.0), 1e300]),
    "strengths from 1e-300 to 1e300": Support.of(PAIRS, np.logspace(-300, 300, 20)),
    "one huge rating": ratings_of([1.0, 2.0, 3.0, 4.0, 1e300]),
    "ratings of both ends": ratings_of([-1.7e308, 0.0, 1.7e308]),
    "tiny ratings": ratings_of([1e-300, 2e-300, 3e-300]),
    "ties": Support.of(PAIRS, tilts_P=np.full(20, -0.5)),
    "ties of 1e6": Support.of(1e6 * PAIRS, tilts_P=np.full(20, -0.5)),
    "careless answers of 1e6": Support.of(1e6 * PAIRS, weights_P=np.full(20, 1e-4), tilts_P=np.full(20, 50.0)),
    "weights from 1e-300 to 1e6": Support.of(PAIRS, weights_P=np.logspace(-300, 6, 20)),
    "rankings": several(PAIRS[:16], [4, 4, 8]),
    "one choice ten thousand times": several(np.tile(PAIRS[:3], (10_000, 1)), [3] * 10_000),
    "rankings of 1e6": several(1e6 * PAIRS, [4, 4, 12]),
    "choices against the start": several(-PAIRS * np.sign(PAIRS @ MEAN)[:, None], [10, 10]),
    "everything at once": Support.of(
        np.concatenate([PAIRS, 1e6 * PAIRS, np.zeros((5, HEADS))]),
        [*np.full(20, np.nan), *np.logspace(-300, 300, 25)],
        1e6 * PAIRS,
        np.linspace(-1e300, 1e300, 20),
    ),
}


def objective(v_K: np.ndarray, support: Support, at: GaussianStart) -> float:
    choices, seen = terms(support, at.rating_gain)
    losses = np.logaddexp(0.0, -(choices.diffs_PK @ v_K))
    squares = (seen.targets_Q - seen.rows_QK @ v_K) ** 2 / (2 * seen.variances_Q)
    among_several = 0.0 if choices.stages is None else choices.stages.loss(v_K)
    pulled = 0.0 if choices.pull_K is None else float(choices.pull_K @ v_K)
    moved = 0.5 * (v_K - at.mean_K) @ at.precision_KK @ (v_K - at.mean_K)
    return float(moved + choices.weights_P @ losses + squares.sum() + among_several - pulled)


@pytest.mark.parametrize("gain", [0.7, None])
@pytest.mark.parametrize("name", HOSTILE)
def test_any_evidence_ends_finite_and_within_the_bound(name: str, gain: float | None) -> None:
    support, at = HOSTILE[name], start(gain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = solve(support, at)
    assert state.factor is not None
    assert np.isfinite(state.weights_K).all()
    lower = unpack_factor(state.factor)
    assert np.isfinite(lower).all()
    assert (np.diag(lower) > 0).all()
    v_K = state.weights_K * at.temperature
    before, after = objective(at.mean_K, support, at), objective(v_K, support, at)
    assert after <= before + 1e-12 * max(abs(before), abs(after))
    moved = (v_K - at.mean_K) @ at.precision_KK @ (v_K - at.mean_K)
    assert moved <= 2 * (before - after) + 1e-9 * (1 + abs(before) + abs(after))
    if gain is None:  # all are choices now
        choices, _ = terms(support, None)
        inverse = np.linalg.inv(at.precision_KK)
        rows, weights = choices.diffs_PK, choices.weights_P
        if choices.stages is not None:
            among = choices.stages
            rows = np.concatenate([rows, among.rows_JK])
            weights = np.concatenate([weights, among.weights_S[among.stage_J]])
        pulled = np.zeros(HEADS) if choices.pull_K is None else choices.pull_K
        most = weights @ np.sqrt(np.einsum("pk,kl,pl->p", rows, inverse, rows)) + np.sqrt(pulled @ inverse @ pulled)
        assert np.sqrt(moved) <= most * (1 + 1e-9)
    # no evidence widens what the start leaves open
    prior = np.linalg.inv(at.precision_KK) / at.temperature**2
    assert (np.linalg.eigvalsh(prior - lower @ lower.T) >= -1e-9).all()


@pytest.mark.parametrize("name", HOSTILE)
def test_the_published_recipe_ends_in_finite_weights_too(name: str) -> None:
    weights_K = solve(HOSTILE[name], SoftmaxStart(MEAN, 0.05, 10)).weights_K
    assert np.isfinite(weights_K).all()
    assert weights_K.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("size", [1e9, 1e20, 1e38])
def test_differences_beyond_the_prior_s_digits_end_finite(size: float) -> None:
    for support in (Support.of(size * PAIRS), Support.of(size * PAIRS, np.linspace(1.0, 2.0, 20))):
        state = solve(support, start())
        assert state.factor is not None
        assert np.isfinite(state.weights_K).all()
        assert np.isfinite(state.factor).all()


@pytest.mark.parametrize("copies", [2, 10_000])
def test_copies_of_a_pair_move_as_far_as_the_pair(copies: int) -> None:
    once, often = (
        solve(Support.of(PAIRS[:1]), start()),
        solve(Support.of(np.repeat(PAIRS[:1], copies, axis=0)), start()),
    )
    np.testing.assert_allclose(often.weights_K, once.weights_K, atol=1e-9)


def test_contradictions_and_constant_pairs_do_not_move_a_start_that_is_indifferent_to_them() -> None:
    at = dataclasses.replace(start(), mean_K=np.zeros(HEADS))
    for name in ("a over b and b over a", "every pair both ways", "constant pairs", "constant graded pairs"):
        np.testing.assert_allclose(solve(HOSTILE[name], at).weights_K, 0.0, atol=1e-9)


def test_no_strength_moves_further_than_four_median_ones() -> None:
    at = start()
    limit, huge = (solve(Support.of(PAIRS, [*np.full(19, 1.0), s]), at).weights_K for s in (4.0, 1e300))
    np.testing.assert_allclose(huge, limit, atol=1e-12)


# People whose tastes are drawn from the prior, so that the start is the best that can be said of all of them.
PEOPLE, QUERY = 300, 2000


def accuracies(tell) -> tuple[np.ndarray, np.ndarray]:
    """Expected share of right sides on new pairs, by the start and after `tell(rng, taste)`, [PEOPLE] each."""
    rng, at = np.random.default_rng(4), start()
    spread = np.linalg.cholesky(np.linalg.inv(at.precision_KK))
    query = rng.normal(size=(QUERY, HEADS))
    before, after = np.zeros(PEOPLE), np.zeros(PEOPLE)
    for person in range(PEOPLE):
        taste = at.mean_K + spread @ rng.normal(size=HEADS)
        truth = expit(query @ taste)
        for into, state in ((before, UserState(at.mean_K)), (after, solve(tell(rng, taste), at))):
            into[person] = np.where(query @ state.weights_K > 0, truth, 1 - truth).mean()
    return before, after


def chosen(rng: np.random.Generator, taste: np.ndarray, diffs: np.ndarray) -> np.ndarray:
    return diffs * np.where(rng.random(len(diffs)) < expit(diffs @ taste), 1.0, -1.0)[:, None]


def few(rng: np.random.Generator, taste: np.ndarray) -> Support:
    return Support.of(chosen(rng, taste, rng.normal(size=(3, HEADS))))


def duplicated(rng: np.random.Generator, taste: np.ndarray) -> Support:
    return Support.of(np.repeat(chosen(rng, taste, rng.normal(size=(1, HEADS))), 1000, axis=0))


def constant(rng: np.random.Generator, taste: np.ndarray) -> Support:
    return Support.of(np.zeros((20, HEADS)), rng.uniform(1, 5, size=20))


def contradictory(rng: np.random.Generator, taste: np.ndarray) -> Support:
    diffs = rng.normal(size=(10, HEADS))
    return Support.of(np.concatenate([diffs, -diffs]))


def ten_graded(rng: np.random.Generator, taste: np.ndarray) -> Support:
    diffs = chosen(rng, taste, rng.normal(size=(10, HEADS)))
    return Support.of(diffs, np.abs(diffs @ taste) + 0.3 * rng.random(10) + 0.01)


def turned(rng: np.random.Generator, taste: np.ndarray) -> Support:
    """Twenty answers of which three in ten were turned round, and known to be."""
    diffs = chosen(rng, taste, rng.normal(size=(20, HEADS))) * np.where(rng.random(20) < 0.3, -1.0, 1.0)[:, None]
    weight, tilt = flip_noise(0.3)
    return Support.of(diffs, weights_P=np.full(20, weight), tilts_P=np.full(20, tilt))


def ranked(rng: np.random.Generator, taste: np.ndarray) -> Support:
    texts = rng.normal(size=(4, HEADS))
    diffs, stages = ranking_stages(texts, np.argsort(np.argsort(-(texts @ taste + rng.gumbel(size=4)))).tolist())
    return Support.of(diffs, stages_P=stages)


@pytest.mark.parametrize("tell", [few, duplicated, constant, ten_graded, turned, ranked])
def test_honest_evidence_however_poor_does_not_make_new_pairs_worse(tell) -> None:
    """Tolerance: two standard errors of the mean change over people, since 300 people are a sample."""
    before, after = accuracies(tell)
    change = after - before
    assert change.mean() >= -2 * change.std() / np.sqrt(PEOPLE)


def test_contradicting_oneself_costs_what_indifference_does_and_no_more() -> None:
    """Each pair both ways says "I care for neither": it moves towards indifference, not towards the wrong side."""
    before, after = accuracies(contradictory)
    assert (after - before).mean() >= -0.01


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("pairs", [1, 5, 20])
def test_answers_that_say_nothing_of_the_taste_cost_little(pairs: int, graded: bool) -> None:
    """No worse than the start, within 1.5 points a pair and 0.6 of what the start is better than chance.

    The tolerance is no slack: consistent noise cannot be told from a taste of its own, so whoever answers by chance is
    believed a little, more with each pair. The prior sets the price: here a pair moves by at most the bound above.
    """

    def tell(rng: np.random.Generator, taste: np.ndarray) -> Support:
        strengths = rng.uniform(1, 5, size=pairs) if graded else None
        return Support.of(rng.normal(size=(pairs, HEADS)), strengths)

    before, after = accuracies(tell)
    lost = (before - after).mean()
    assert lost <= min(0.015 * pairs, 0.6 * (before.mean() - 0.5))
