"""What a solve takes and gives: the evidence of one user, the start of a recipe, the state of a user."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


LARGEST_WEIGHT: Final = 1e6
"""Weights and tilts beyond this are mistakes."""


@dataclass(frozen=True, slots=True)
class Support:
    """Everything that a user has told, as the solver sees it: choices, graded choices and ratings.

    A choice is a *stage*: one text was taken, the others of the stage were not. Most stages are pairs, of one row. With
    v the user's weights, rows d_j of a stage, its weight s and its tilts c_j, a stage's loss is

        s [log(1 + sum_j exp(-d_j . v)) - sum_j c_j d_j . v]

    `statements` says which tilts stand for ties, uncertain labels and careless answers, and which stages for a ranking.

    Strengths and ratings are on the user's own scale: solvers use them relative to the user's other ones, so that
    stars, percents and points mean the same.

    Attributes:
        diffs_PK: Base-reward differences, chosen minus rejected, [P, K].
        strengths_P: How strongly each choice was felt, above 0, such as the difference of two ratings, [P]; NaN where
            the user only chose.
        rated_RK: Base rewards of texts that the user rated one by one, [R, K].
        ratings_R: Those ratings, the higher the better, [R].
        groups_R: Ratings are compared within a group only, such as the answers to one prompt: a number each, [R].
        weights_P: How much each choice counts, above 0, [P]; the rows of a stage have one weight.
        tilts_P: Tilts c, [P]; 0 for a plain choice.
        stages_P: Rows with the same number belong to one stage, [P].
        weights_R: How much each rating counts, above 0, [R].
    """

    diffs_PK: FloatArray
    strengths_P: FloatArray
    rated_RK: FloatArray
    ratings_R: FloatArray
    groups_R: IntArray
    weights_P: FloatArray
    tilts_P: FloatArray
    stages_P: IntArray
    weights_R: FloatArray

    def __post_init__(self) -> None:
        if self.diffs_PK.ndim != 2 or self.strengths_P.shape != (len(self.diffs_PK),):
            raise ValueError(
                f"expected diffs [P, K] and strengths [P], got {self.diffs_PK.shape} and {self.strengths_P.shape}"
            )
        rated = self.ratings_R.shape
        if len(rated) != 1 or self.groups_R.shape != rated or self.rated_RK.shape != (*rated, self.heads):
            raise ValueError(
                f"expected rated [R, {self.heads}], ratings [R] and groups [R], "
                f"got {self.rated_RK.shape}, {rated} and {self.groups_R.shape}"
            )
        numbers = (self.diffs_PK, self.rated_RK, self.ratings_R)
        if np.isinf(self.strengths_P).any() or not all(np.isfinite(each).all() for each in numbers if each.size):
            raise ValueError("support holds numbers that are not finite")
        if (self.strengths_P <= 0).any():
            raise ValueError("strengths must be positive")
        self._check_choices()

    def _check_choices(self) -> None:
        pairs = self.strengths_P.shape
        if not self.weights_P.shape == self.tilts_P.shape == self.stages_P.shape == pairs:
            raise ValueError(
                f"expected weights, tilts and stages [{pairs[0]}], "
                f"got {self.weights_P.shape}, {self.tilts_P.shape} and {self.stages_P.shape}"
            )
        if self.weights_R.shape != self.ratings_R.shape:
            raise ValueError(f"expected weights of ratings {self.ratings_R.shape}, got {self.weights_R.shape}")
        for weights in (self.weights_P, self.weights_R):
            if len(weights) and not (weights.min() > 0 and weights.max() <= LARGEST_WEIGHT):
                raise ValueError(f"weights must be above 0 and at most {LARGEST_WEIGHT:g}")
        if self.tilts_P.any() and not (np.abs(self.tilts_P) <= LARGEST_WEIGHT).all():
            raise ValueError(f"tilts must be at most {LARGEST_WEIGHT:g} in size")
        if not self._ascending:
            shared_P = self.shared
            if not np.isnan(self.strengths_P[shared_P]).all():
                raise ValueError("a choice among several texts has no strength")
            order = np.argsort(self.stages_P, kind="stable")
            same = np.diff(self.stages_P[order]) == 0
            if (same & (np.diff(self.weights_P[order]) != 0)).any():
                raise ValueError("the rows of a stage must have the same weight")

    def __len__(self) -> int:
        """Rows of choices, and ratings."""
        return len(self.diffs_PK) + len(self.ratings_R)

    @property
    def heads(self) -> int:
        """K."""
        return int(self.diffs_PK.shape[1])

    @property
    def graded(self) -> npt.NDArray[np.bool_]:
        """Which pairs have a strength, [P]."""
        return np.asarray(~np.isnan(self.strengths_P))

    @property
    def shared(self) -> npt.NDArray[np.bool_]:
        """Which rows belong to a stage of several, [P]."""
        if self._ascending:
            return np.zeros(len(self.stages_P), bool)
        _, stage_P, count_S = np.unique(self.stages_P, return_inverse=True, return_counts=True)
        return np.asarray(count_S[stage_P] > 1)

    @property
    def _ascending(self) -> bool:
        """Whether each row has a higher stage than the one before: the usual case, where nothing is shared."""
        return bool((self.stages_P[1:] > self.stages_P[:-1]).all())

    @classmethod
    def of(
        cls,
        diffs_PK: npt.ArrayLike,
        strengths_P: npt.ArrayLike | None = None,
        rated_RK: npt.ArrayLike | None = None,
        ratings_R: npt.ArrayLike | None = None,
        groups_R: npt.ArrayLike | None = None,
        *,
        weights_P: npt.ArrayLike | None = None,
        tilts_P: npt.ArrayLike | None = None,
        stages_P: npt.ArrayLike | None = None,
        weights_R: npt.ArrayLike | None = None,
    ) -> Support:
        """Support from anything array-like.

        Without strengths pairs are plain choices, without groups there is one; without weights everything counts 1,
        without tilts nothing is tilted, without stages every row is a choice of its own.
        """
        diffs = np.asarray(diffs_PK, dtype=np.float64)
        heads = diffs.shape[-1] if diffs.ndim == 2 else 0
        ratings = np.zeros(0) if ratings_R is None else np.asarray(ratings_R, dtype=np.float64)
        return cls(
            diffs,
            np.full(len(diffs), np.nan) if strengths_P is None else np.asarray(strengths_P, dtype=np.float64),
            np.zeros((0, heads)) if rated_RK is None else np.asarray(rated_RK, dtype=np.float64),
            ratings,
            np.zeros(len(ratings), np.int64) if groups_R is None else np.asarray(groups_R, dtype=np.int64),
            np.ones(len(diffs)) if weights_P is None else np.asarray(weights_P, dtype=np.float64),
            np.zeros(len(diffs)) if tilts_P is None else np.asarray(tilts_P, dtype=np.float64),
            np.arange(len(diffs)) if stages_P is None else np.asarray(stages_P, dtype=np.int64),
            np.ones(len(ratings)) if weights_R is None else np.asarray(weights_R, dtype=np.float64),
        )

    @classmethod
    def empty(cls, heads: int) -> Support:
        """No evidence, for K = `heads`."""
        return cls.of(np.zeros((0, heads)))

    def canonical(self) -> Support:
        """The same evidence in an order that depends on its values alone; stages stay whole and lie together.

        Floating-point sums depend on the order of their terms; sorting first makes a solve a function of the *set*.
        """
        if len(self) < 2:
            return self
        pairs = np.lexsort((self.tilts_P, self.weights_P, self.strengths_P, *self.diffs_PK.T))
        stages_P = np.arange(len(pairs))
        if not self._ascending:
            pairs, stages_P = self._whole_stages(pairs)
        rated: slice | npt.NDArray[np.intp] = slice(None)
        if len(self.ratings_R):
            rated = np.lexsort((self.weights_R, self.ratings_R, *self.rated_RK.T, self.groups_R))
        return Support(
            self.diffs_PK[pairs],
            self.strengths_P[pairs],
            self.rated_RK[rated],
            self.ratings_R[rated],
            self.groups_R[rated],
            self.weights_P[pairs],
            self.tilts_P[pairs],
            stages_P,
            self.weights_R[rated],
        )

    def _whole_stages(self, order: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], IntArray]:
        """Rows in order of their stages, stages as their rows are in `order`, and the new stage of each.

        Rows of the same values have the same place, so that stages compare by values only.
        """
        strengths_P = np.nan_to_num(self.strengths_P)
        rows = np.column_stack([self.diffs_PK, strengths_P, self.weights_P, self.tilts_P])[order]
        place_P = np.empty(len(order), np.int64)
        place_P[order] = np.cumsum(np.concatenate([[False], (rows[1:] != rows[:-1]).any(axis=1)]))
        by_stage: dict[int, list[int]] = {}
        for row, stage in zip(order.tolist(), self.stages_P[order].tolist(), strict=True):
            by_stage.setdefault(stage, []).append(row)
        places = place_P.tolist()
        stages = sorted(by_stage.values(), key=lambda rows: [places[row] for row in rows])
        lengths = [len(rows) for rows in stages]
        rows_of_all = np.fromiter(itertools.chain.from_iterable(stages), dtype=np.intp, count=len(order))
        return rows_of_all, np.repeat(np.arange(len(stages)), lengths)


@dataclass(frozen=True, slots=True)
class GaussianStart:
    """Start of the MAP recipe: a Gaussian prior over weights and one temperature.

    The solver works with weights v whose logits are ``diff . v``; effective weights are ``w = v / temperature``,
    so that rewards are calibrated Bradley-Terry log-odds.

    Attributes:
        mean_K: Prior mean of v, [K].
        precision_KK: Prior precision of v, [K, K], symmetric positive definite.
        temperature: Divides the logits; above 1 makes predictions less confident.
        rating_gain: Logits (of v) that one standard deviation of a person's own ratings is worth; None where the
            recipe knows nothing of ratings, and strengths are then plain choices.
    """

    mean_K: FloatArray
    precision_KK: FloatArray
    temperature: float = 1.0
    rating_gain: float | None = None

    def __post_init__(self) -> None:
        heads = len(self.mean_K)
        if self.mean_K.shape != (heads,) or self.precision_KK.shape != (heads, heads):
            raise ValueError(
                f"expected mean [K] and precision [K, K], got {self.mean_K.shape} and {self.precision_KK.shape}"
            )
        if not (np.isfinite(self.mean_K).all() and np.isfinite(self.precision_KK).all()):
            raise ValueError("the prior holds numbers that are not finite")
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError("temperature must be positive")
        if self.rating_gain is not None and not (np.isfinite(self.rating_gain) and self.rating_gain > 0):
            raise ValueError("the rating gain must be positive")
        if not np.allclose(self.precision_KK, self.precision_KK.T, rtol=1e-9, atol=0.0):
            raise ValueError("the prior precision is not symmetric")
        try:
            np.linalg.cholesky(self.precision_KK)
        except np.linalg.LinAlgError:
            raise ValueError("the prior precision is not positive definite") from None

    @property
    def heads(self) -> int:
        """K."""
        return len(self.mean_K)


@dataclass(frozen=True, slots=True)
class SoftmaxStart:
    """Start of the published recipe (arXiv 2601.18731): weight logits and an Adam inner loop.

    Attributes:
        logits_K: Meta-learned weight logits, [K]; effective weights are their softmax.
        inner_lr: Learning rate of the inner loop.
        inner_steps: Adam steps from the logits on the mean Bradley-Terry loss of the support.
    """

    logits_K: FloatArray
    inner_lr: float
    inner_steps: int

    def __post_init__(self) -> None:
        if self.logits_K.ndim != 1 or not np.isfinite(self.logits_K).all():
            raise ValueError("logits must be a vector of finite numbers")
        if not (np.isfinite(self.inner_lr) and self.inner_lr > 0) or self.inner_steps < 0:
            raise ValueError("inner_lr must be positive and inner_steps not negative")

    @property
    def heads(self) -> int:
        """K."""
        return len(self.logits_K)


Start = GaussianStart | SoftmaxStart


@dataclass(frozen=True, slots=True)
class UserState:
    """The result of a solve: all that a user is.

    Attributes:
        weights_K: Effective weights, [K]: reward = base_rewards . weights.
        factor: Lower Cholesky factor of the posterior covariance of the effective weights, packed by rows,
            [K (K + 1) / 2]; None where the recipe has no posterior.
    """

    weights_K: FloatArray
    factor: FloatArray | None = None


def pack_factor(lower_KK: npt.NDArray[Any]) -> FloatArray:
    """The lower triangle of [K, K] by rows, [K (K + 1) / 2]."""
    return np.asarray(lower_KK[_lower_triangle(len(lower_KK))], dtype=np.float64)


def unpack_factor(packed: FloatArray) -> FloatArray:
    """The inverse of `pack_factor`: a lower-triangular [K, K].

    Raises:
        ValueError: The length is no triangular number.
    """
    heads = (math.isqrt(8 * len(packed) + 1) - 1) // 2
    if heads * (heads + 1) // 2 != len(packed):
        raise ValueError(f"a packed factor cannot have {len(packed)} numbers")
    lower_KK = np.zeros((heads, heads))
    lower_KK[_lower_triangle(heads)] = packed
    return lower_KK


@functools.cache
def _lower_triangle(heads: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    # Kept, because every score unpacks a factor and making the indices costs more than using them.
    return np.tril_indices(heads)
