"""Choices made on seen users alone: power, ridge, weighting and scale of the mean; tau and temperature of the prior.

Every candidate is fitted on three quarters of the seen users and judged on the rest, four times (`folds.py`).
The loss is the mean over held-out users of their Bradley-Terry log-loss; a scale (temperature) is fitted to the pooled
held-out logits of each candidate, since a candidate is judged by what it orders and how surely, not by its units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from service.mrm.state import FloatArray
from service.training.bradley_terry import fit_bradley_terry, fit_logit_scale
from service.training.features import Projection, principal_components
from service.training.folds import SHOTS, Episodes, Fold
from service.training.heads import Heads, make_heads
from service.training.laplace import map_deviations
from service.training.pairs import IntArray
from service.training.prior import learn_prior
from service.training.steps import Arrays, Steps

POWERS: Final = (0.0, 0.5, 1.0)
RIDGES: Final = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
WEIGHTINGS: Final = ("pairs", "users")
TAUS: Final = (0.003, 0.01, 0.05, 0.2, 0.5, 1.0)
# Logits that predict nothing are damped, not erased: a temperature stays finite.
MIN_LOGIT_SCALE: Final = 1e-3
# A prior so tight that no evidence moves a user: the plain population model in the same form.
NO_TAU: Final = 1e-6


@dataclass(frozen=True, slots=True)
class MeanChoice:
    """The chosen population model under one power.

    Attributes:
        power: p of the features.
        ridge: lambda.
        weighting: What counts the same: `pairs` or `users`.
        scale: Factor that calibrates the fitted theta.
        loss: Validation log-loss, mean over held-out users.
    """

    power: float
    ridge: float
    weighting: str
    scale: float
    loss: float


@dataclass(frozen=True, slots=True)
class PriorChoice:
    """The chosen prior.

    Attributes:
        mean: The population model that it personalises.
        tau: Factor on the prior covariance; `NO_TAU` where personalisation did not pay.
        logit_scale: Fitted factor on logits that already carry the noise factor: temperature = 1 / both.
        loss: Validation log-loss of the best prior after few pairs, mean over held-out users and over shots.
        plain_loss: That of the population model on the same pairs.
        standard_error: Standard error of the difference, over users or over folds, whichever is larger.
        personalises: The gain exceeds one standard error.
        losses: Every candidate's loss, [{power, tau, loss, logit_scale}].
    """

    mean: MeanChoice
    tau: float
    logit_scale: float
    loss: float
    plain_loss: float
    standard_error: float
    personalises: bool
    losses: list[dict[str, float]]

    def as_json(self) -> dict[str, Any]:
        """The choice as JSON-able values."""
        return asdict(self)


def fold_projection(fold: Fold, values_ND: FloatArray, prompt_N: IntArray, power: float) -> Projection:
    """Features whose components, mean and scale are those of the fold's training texts."""
    rows = fold.train_texts()
    return principal_components(values_ND[rows], prompt_N[rows], values_ND.shape[1]).scaled(power)


def choose_means(folds: Sequence[Fold], values_ND: FloatArray, prompt_N: IntArray, steps: Steps) -> list[MeanChoice]:
    """The best population model under each power.

    Args:
        folds: Splits of the seen users.
        values_ND: Hidden states of texts, or the reduction of them that all folds share.
        prompt_N: Prompt of each text.
        steps: One step per fold and power.
    """
    return [_choose_mean(folds, values_ND, prompt_N, power, steps) for power in POWERS]


def _choose_mean(
    folds: Sequence[Fold], values_ND: FloatArray, prompt_N: IntArray, power: float, steps: Steps
) -> MeanChoice:
    jobs = {
        f"mean-{number}-p{power}": partial(_mean_margins, fold, values_ND, prompt_N, power)
        for number, fold in enumerate(folds)
    }
    judged = [arrays["margins_LJ"] for arrays in steps.run_all(jobs)]
    weights_J = _equal_users(np.concatenate([fold.judged.user_P for fold in folds]))
    choices = []
    for (weighting, ridge), margin_J in zip(_mean_candidates(), np.concatenate(judged, axis=1), strict=True):
        scale = fit_logit_scale(margin_J, weights_J)
        loss = float(weights_J @ np.logaddexp(0.0, -scale * margin_J))
        choices.append(MeanChoice(power, ridge, weighting, scale, loss))
    return min(choices, key=lambda choice: choice.loss)


def _mean_candidates() -> list[tuple[str, float]]:
    # from the strongest ridge to the weakest: each fit starts where the last one ended
    return [(weighting, ridge) for weighting in WEIGHTINGS for ridge in sorted(RIDGES, reverse=True)]


def _mean_margins(fold: Fold, values_ND: FloatArray, prompt_N: IntArray, power: float) -> Arrays:
    values_Nd = fold_projection(fold, values_ND, prompt_N, power)(values_ND)
    thetas, theta_d = [], None
    for weighting, ridge in _mean_candidates():
        theta_d = fit_bradley_terry(values_Nd, fold.train, fold.train.weights(weighting), ridge, theta_d)
        thetas.append(theta_d)
    rewards_LN = np.stack(thetas) @ values_Nd.T
    return {"margins_LJ": rewards_LN[:, fold.judged.chosen_P] - rewards_LN[:, fold.judged.rejected_P]}


def choose_prior(
    folds: Sequence[Fold],
    values_ND: FloatArray,
    prompt_N: IntArray,
    means: Sequence[MeanChoice],
    heads: int,
    steps: Steps,
) -> PriorChoice:
    """The best prior over all powers and taus, or none.

    The population model that must be beaten is the best of `means`; where the best prior does not beat it by more
    than one standard error, that model stays.
    """
    results = {mean: _judged_priors(folds, values_ND, prompt_N, mean, heads, steps) for mean in means}
    weights_J = np.concatenate([fold.episodes.weights() for fold in folds]) / len(folds)
    user_J = np.concatenate([fold.episodes.user_E[fold.episodes.episode_J] for fold in folds])

    candidates = []
    for mean, result in results.items():
        for tau, margins_SJ in zip(TAUS, result["margins_TSJ"], strict=True):
            candidates.append(_Candidate.judge(mean, tau, margins_SJ, weights_J))
    best = min(candidates, key=lambda candidate: candidate.loss)
    plain = min(means, key=lambda mean: mean.loss)
    plain_J = np.logaddexp(0.0, -results[plain]["plain_J"])
    plain_loss = float(weights_J @ plain_J)
    gain_J = plain_J - best.loss_J
    fold_J = np.repeat(np.arange(len(folds)), [len(fold.episodes.episode_J) for fold in folds])
    # the users of a cold fold are judged on the same few new texts: what varies there is the texts, not the users
    standard_error = max(
        _standard_error(_group_means(gain_J, weights_J, user_J)),
        _standard_error(_group_means(gain_J, weights_J, fold_J)),
    )
    personalises = plain_loss - best.loss > standard_error
    return PriorChoice(
        mean=best.mean if personalises else plain,
        tau=best.tau if personalises else NO_TAU,
        logit_scale=best.logit_scale if personalises else 1.0,
        loss=best.loss,
        plain_loss=plain_loss,
        standard_error=standard_error,
        personalises=personalises,
        losses=[
            {"power": each.mean.power, "tau": each.tau, "loss": each.loss, "logit_scale": each.logit_scale}
            for each in candidates
        ],
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A prior as judged on held-out users."""

    mean: MeanChoice
    tau: float
    logit_scale: float
    loss: float
    loss_J: FloatArray

    @classmethod
    def judge(cls, mean: MeanChoice, tau: float, margins_SJ: FloatArray, weights_J: FloatArray) -> _Candidate:
        weights_SJ = np.tile(weights_J / len(margins_SJ), len(margins_SJ))
        scale = max(fit_logit_scale(margins_SJ.ravel(), weights_SJ), MIN_LOGIT_SCALE)
        loss_J = np.logaddexp(0.0, -scale * margins_SJ).mean(axis=0)
        return cls(mean, tau, scale, float(weights_J @ loss_J), loss_J)


def _judged_priors(
    folds: Sequence[Fold], values_ND: FloatArray, prompt_N: IntArray, mean: MeanChoice, heads: int, steps: Steps
) -> Arrays:
    """`_prior_margins` of all folds, their judged pairs side by side."""
    jobs = {
        f"prior-{number}-p{mean.power}-k{heads}": partial(_prior_margins, fold, values_ND, prompt_N, mean, heads)
        for number, fold in enumerate(folds)
    }
    judged = steps.run_all(jobs)
    return {name: np.concatenate([arrays[name] for arrays in judged], axis=-1) for name in judged[0]}


def _prior_margins(fold: Fold, values_ND: FloatArray, prompt_N: IntArray, mean: MeanChoice, heads: int) -> Arrays:
    projection = fold_projection(fold, values_ND, prompt_N, mean.power)
    values_Nd = projection(values_ND)
    theta_d = fit_bradley_terry(values_Nd, fold.train, fold.train.weights(mean.weighting), mean.ridge)
    mean_d = mean.scale * theta_d
    covariance_dd = learn_prior(values_Nd, fold.train, mean_d)
    made = make_heads(mean_d, covariance_dd, values_Nd[fold.train_texts()], heads)
    base_NK = values_Nd @ made.directions_Kd.T
    reward_N = values_Nd @ mean_d
    episodes = fold.episodes
    return {
        "plain_J": reward_N[episodes.chosen_J] - reward_N[episodes.rejected_J],
        "margins_TSJ": np.stack([episode_margins(episodes, base_NK, made, tau) for tau in TAUS]),
    }


def episode_margins(episodes: Episodes, base_NK: FloatArray, made: Heads, tau: float) -> FloatArray:
    """Logits of the judged pairs after 5, 10 and 20 support pairs, noise factor included, [S, J]."""
    diffs_ESK = base_NK[episodes.chosen_ES] - base_NK[episodes.rejected_ES]
    judged_JK = base_NK[episodes.chosen_J] - base_NK[episodes.rejected_J]
    margins = []
    for shots in SHOTS:
        given_ESK = diffs_ESK[:, :shots]
        weights_EK = made.start_K + map_deviations(
            given_ESK, given_ESK @ made.start_K, episodes.strength_ES[:, :shots], made.precision(tau)
        )
        margins.append(made.noise_factor * np.einsum("jk,jk->j", judged_JK, weights_EK[episodes.episode_J]))
    return np.stack(margins)


def _equal_users(user_J: IntArray) -> FloatArray:
    count_U = np.bincount(user_J)
    return np.asarray(1.0 / (count_U[user_J] * np.count_nonzero(count_U)))


def _group_means(values_J: FloatArray, weights_J: FloatArray, group_J: IntArray) -> FloatArray:
    weight_G = np.bincount(group_J, weights=weights_J)
    total_G = np.bincount(group_J, weights=weights_J * values_J)
    return np.asarray(total_G[weight_G > 0] / weight_G[weight_G > 0])


def _standard_error(values_G: FloatArray) -> float:
    return float(values_G.std(ddof=1) / np.sqrt(len(values_G)))
