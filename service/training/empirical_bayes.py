"""The empirical-Bayes recipe: heads, start, prior and temperature from the pairs of seen users.

Mean: tuned ridge Bradley-Terry. Prior over users: Laplace EM around it. Heads: the prior's main directions and the
mean's own. Everything that is chosen is chosen on held-out *seen* users (`selection.py`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from service.checkpoints import BackboneIdentity, Checkpoint, Golden
from service.datasets.embedded import EmbeddedDataset
from service.mrm import GaussianStart
from service.mrm.state import FloatArray
from service.training.bradley_terry import fit_bradley_terry
from service.training.features import Projection, principal_components
from service.training.folds import (
    COLD_SHARE,
    DRAWS,
    FOLDS,
    MAX_HELD_OUT_USERS,
    MIN_GROUPS,
    SHOTS,
    SUPPORT_SHARE,
    make_folds,
)
from service.training.heads import EIGENVALUE_FLOOR, REMOVED_SHARE, make_heads
from service.training.pairs import Pairs, SeenData, codes
from service.training.prior import PSEUDO_USERS, ROUNDS, START_VARIANCE, learn_prior
from service.training.selection import (
    POWERS,
    RIDGES,
    TAUS,
    WEIGHTINGS,
    MeanChoice,
    choose_means,
    choose_prior,
)
from service.training.steps import OnStep, Steps, digest_of, no_progress
from service.training.threads import one_blas_thread

RECIPE: Final = "eb"
MAX_COMPONENTS: Final = 256
# Above this share of texts without a training pair, users are taken to be judged on new texts.
COLD_TEXT_SHARE: Final = 0.1
# Steps that a fit reports: features, choices (folds x powers, twice), the final prior.
STEPS: Final = 2 + 2 * FOLDS * len(POWERS)
BASELINE_STEPS: Final = 1 + FOLDS * len(POWERS)


def seen_data(dataset: EmbeddedDataset, split: str) -> SeenData:
    """The training part of a split: the only door from a data set to a recipe.

    Only the texts that training pairs mention are read.
    """
    table = dataset.split(split).seen()
    rows = table.texts()
    user_P = codes(table.user_P)
    pairs = Pairs(
        user_P=user_P,
        chosen_P=np.searchsorted(rows, table.chosen_P).astype(np.int64),
        rejected_P=np.searchsorted(rows, table.rejected_P).astype(np.int64),
        strength_P=table.strength_P.astype(np.float64),
        conversation_P=table.conversation_P.astype(np.int64),
        users=int(user_P.max(initial=-1)) + 1,
    )
    return SeenData(pairs, dataset.gather(rows), dataset.text_prompt_N[rows].astype(np.int64))


def is_cold(dataset: EmbeddedDataset, split: str) -> bool:
    """Whether more than a tenth of the data set's texts have no training pair in this split.

    Looks at no pair of an unseen user, only at which texts exist.
    """
    return len(dataset.split(split).seen().texts()) < (1.0 - COLD_TEXT_SHARE) * dataset.texts


@dataclass(frozen=True, slots=True)
class EmpiricalBayesFit:
    """What the recipe learned.

    Attributes:
        heads_KD: A, float64.
        bias_K: b.
        start: Start and prior.
        summary: What was chosen and how it did, JSON-able, the same in every run: goes into the checkpoint.
        report: All candidates and the time taken, JSON-able.
    """

    heads_KD: FloatArray
    bias_K: FloatArray
    start: GaussianStart
    summary: dict[str, Any]
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BradleyTerryFit:
    """The tuned baseline: one taste for everybody, K = 1.

    Attributes:
        direction_D: Reward = direction . h + bias, in calibrated log-odds.
        bias: Centres the training texts.
        choice: What was chosen, and its validation loss.
    """

    direction_D: FloatArray
    bias: float
    choice: MeanChoice


@one_blas_thread()
def fit_empirical_bayes(
    data: SeenData,
    heads: int,
    seed: int,
    cold: bool,
    cache: Path | None = None,
    on_step: OnStep = no_progress,
) -> EmpiricalBayesFit:
    """Fit the recipe.

    Args:
        data: Pairs and texts of seen users.
        heads: K.
        seed: Decides the validation folds; nothing else is random.
        cold: Validate on held-out texts as well as users.
        cache: Directory for finished steps, so that a killed fit resumes.
        on_step: Called after each of `STEPS` steps.

    Raises:
        InvalidInput: Too few users, pairs or differing texts for so many heads.
    """
    started = time.perf_counter()
    steps = Steps(cache, _digest(data, seed, cold), on_step)
    reduction, values_Nr = _reduced(data, steps)
    folds = make_folds(data.pairs, data.prompt_N, cold, seed)
    means = choose_means(folds, values_Nr, data.prompt_N, steps)
    choice = choose_prior(folds, values_Nr, data.prompt_N, means, heads, steps)

    projection = principal_components(values_Nr, data.prompt_N, MAX_COMPONENTS).scaled(choice.mean.power)
    values_Nd = projection(values_Nr)
    mean_d = _fitted_mean(values_Nd, data.pairs, choice.mean)
    name = f"prior-p{choice.mean.power}"
    covariance_dd = steps.run(name, lambda: {"dd": learn_prior(values_Nd, data.pairs, mean_d)})["dd"]
    made = make_heads(mean_d, covariance_dd, values_Nd, heads)
    heads_KD, bias_K = reduction.then(projection).fold(made.directions_Kd)
    # a start that stays where it is needs no temperature: the mean's scale is calibrated
    logit_scale = made.noise_factor * choice.logit_scale if choice.personalises else 1.0
    start = GaussianStart(made.start_K, made.precision(choice.tau), 1.0 / logit_scale)
    summary = {
        "method": RECIPE,
        "heads": heads,
        "seed": seed,
        "new_texts": cold,
        "users": data.users,
        "pairs": len(data.pairs),
        "texts": len(data.hidden_ND),
        "components": len(mean_d),
        "power": choice.mean.power,
        "ridge": choice.mean.ridge,
        "weighting": choice.mean.weighting,
        "tau": choice.tau,
        "personalises": choice.personalises,
        "validation_loss": choice.loss,
        "validation_loss_of_population": choice.plain_loss,
        "standard_error": choice.standard_error,
    }
    report = {
        "summary": summary,
        "choice": choice.as_json(),
        "means": [asdict(mean) for mean in means],
        "start": {
            "mean": made.start_K.tolist(),
            "covariance": (choice.tau * made.covariance_KK).tolist(),
            "noise_factor": made.noise_factor,
            "temperature": start.temperature,
        },
        "seconds": time.perf_counter() - started,
    }
    return EmpiricalBayesFit(heads_KD, bias_K, start, summary, report)


@one_blas_thread()
def fit_tuned_bradley_terry(
    data: SeenData, seed: int, cold: bool, cache: Path | None = None, on_step: OnStep = no_progress
) -> BradleyTerryFit:
    """The baseline, its power, ridge, weighting and scale chosen on the same folds as the recipe's.

    It shares the recipe's steps: with the cache of a fit to the same data and seed nothing is tuned twice.
    """
    steps = Steps(cache, _digest(data, seed, cold), on_step)
    reduction, values_Nr = _reduced(data, steps)
    folds = make_folds(data.pairs, data.prompt_N, cold, seed)
    choice = min(choose_means(folds, values_Nr, data.prompt_N, steps), key=lambda mean: mean.loss)
    projection = principal_components(values_Nr, data.prompt_N, MAX_COMPONENTS).scaled(choice.power)
    theta_d = _fitted_mean(projection(values_Nr), data.pairs, choice)
    heads_KD, bias_K = reduction.then(projection).fold(theta_d[None])
    return BradleyTerryFit(heads_KD[0], float(bias_K[0]), choice)


def train_empirical_bayes(
    dataset: EmbeddedDataset,
    split: str,
    heads: int = 8,
    seed: int = 0,
    new_texts: bool | None = None,
    name: str | None = None,
    cache: Path | None = None,
    on_step: OnStep = no_progress,
) -> tuple[Checkpoint, dict[str, Any]]:
    """Fit the recipe on a split of an embedded data set and make a checkpoint of it.

    Args:
        dataset: The data set.
        split: Name of the split; only its training part is read.
        heads: K.
        seed: Decides the validation folds.
        new_texts: Whether users will be judged on new texts; None asks `is_cold`.
        name: Name of the checkpoint.
        cache: Directory for finished steps.
        on_step: Called after each of `STEPS` steps.

    Returns:
        The checkpoint, whose `training` says what was chosen and how it did on held-out seen users, and the full
        report of the fit, JSON-able.
    """
    cold = is_cold(dataset, split) if new_texts is None else new_texts
    fit = fit_empirical_bayes(seen_data(dataset, split), heads, seed, cold, cache, on_step)
    source = dataset.manifest.source
    provenance = {"data": source.name, "format": source.format, "split": split}
    return make_checkpoint(dataset, fit, name or f"{RECIPE}-k{heads}", provenance), {**provenance, **fit.report}


def make_checkpoint(
    dataset: EmbeddedDataset, fit: EmpiricalBayesFit, name: str, provenance: Mapping[str, Any]
) -> Checkpoint:
    """The fit with its backbone's identity and the golden texts' base rewards."""
    backbone = dataset.backbone
    heads_KD, bias_K = fit.heads_KD.astype(np.float32), fit.bias_K.astype(np.float32)
    golden = None
    if len(dataset.golden_GD):
        golden_GK = dataset.golden_GD.astype(np.float64) @ heads_KD.T.astype(np.float64) + bias_K
        golden = Golden(
            texts_id=dataset.manifest.input.golden_texts_id,
            dtype=backbone.spec.get("dtype", "float32"),
            base_rewards=golden_GK.tolist(),
        )
    return Checkpoint(
        name=name,
        backbone=BackboneIdentity(
            id=backbone.id,
            fingerprint=backbone.fingerprint,
            template_id=backbone.template_id,
            hidden_size=backbone.hidden_size,
        ),
        A_KD=heads_KD,
        b_K=bias_K,
        start=fit.start,
        golden=golden,
        training={**provenance, **fit.summary},
    )


def _reduced(data: SeenData, steps: Steps) -> tuple[Projection, FloatArray]:
    """Hidden states in at most `MAX_COMPONENTS` orthonormal directions: lossless for few texts, and small.

    The directions are those of all training texts; with more than `MAX_COMPONENTS` texts, validation folds share them.
    """

    def compute() -> dict[str, FloatArray]:
        components = principal_components(data.hidden_ND, data.prompt_N, MAX_COMPONENTS)
        return {"mean_D": components.mean_D, "basis_Dd": components.basis_Dd}

    arrays = steps.run("features", compute)
    reduction = Projection(arrays["mean_D"], arrays["basis_Dd"])
    return reduction, reduction(data.hidden_ND)


def _fitted_mean(values_Nd: FloatArray, pairs: Pairs, choice: MeanChoice) -> FloatArray:
    return choice.scale * fit_bradley_terry(values_Nd, pairs, pairs.weights(choice.weighting), choice.ridge)


def _digest(data: SeenData, seed: int, cold: bool) -> str:
    options = {
        # to be raised when other code makes other steps of the same input
        "version": 2,
        "seed": seed,
        "cold": cold,
        "grids": [POWERS, RIDGES, WEIGHTINGS, TAUS, MAX_COMPONENTS],
        "folds": [FOLDS, DRAWS, SHOTS, SUPPORT_SHARE, COLD_SHARE, MIN_GROUPS, MAX_HELD_OUT_USERS],
        "prior": [ROUNDS, PSEUDO_USERS, START_VARIANCE, REMOVED_SHARE, EIGENVALUE_FLOOR],
    }
    pairs = data.pairs
    return digest_of(
        options,
        data.hidden_ND,
        data.prompt_N,
        pairs.user_P,
        pairs.chosen_P,
        pairs.rejected_P,
        pairs.strength_P,
        pairs.conversation_P,
    )
