"""From what a user states to the rows, weights and tilts of a `Support`.

With x = d . v the logit of a choice and l(x) = log(1 + exp(-x)) its loss, a tilt c makes the loss l(x) - c x.

- A label that holds with probability y has the expected loss y l(x) + (1 - y) l(-x) = l(x) - (y - 1) x, because
  l(-x) = l(x) + x. Of a tie neither side is likelier: y = 1/2.
- An answer that was turned round with probability e has the likelihood (1 - e) sigmoid(x) + e sigmoid(-x), whose
  logarithm is not concave. Its place takes the loss whose mean over that noise is l (Natarajan et al. 2013),
  ((1 - e) l(x) - e l(-x)) / (1 - 2 e) = l(x) - e / (1 - 2 e) x, convex, times (1 - 2 e)^2: where the user is
  indifferent it then has the true likelihood's gradient and Fisher information.
- Of n texts one was taken blindly with probability e, each as likely. In the same way, with L the loss of what was
  taken and M the mean loss of all n, (L - e M) / (1 - e) = L - sum_j e / ((1 - e) n) z_j, times (1 - e)^2.

The first two hold of a squared loss as well: a graded choice of target t is then seen as (1 + 2 c) t.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from service.mrm.state import FloatArray, IntArray

# Older than that many half-lives is as good as forgotten, and must not become a weight of zero.
_MOST_HALVINGS: Final = 200.0


class Reading(NamedTuple):
    """How a choice is read: the weight and the tilt of its rows."""

    weight: float
    tilt: float


PLAIN: Final = Reading(1.0, 0.0)
TIE: Final = Reading(1.0, -0.5)
"""Both were liked as much: it does not matter which of the two is called chosen."""


def soft_label(probability: float) -> Reading:
    """A choice that is right with a known probability, such as that of a model or the share of several people.

    Raises:
        ValueError: No probability.
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"the probability of a label must lie in [0, 1], got {probability}")
    return Reading(1.0, probability - 1.0)


def flip_noise(probability: float, of: Reading = PLAIN) -> Reading:
    """A choice between two that was turned round with this probability.

    Args:
        probability: Below 1/2.
        of: How the choice were read without that noise.

    Raises:
        ValueError: It is not in [0, 1/2): at 1/2 an answer says nothing.
    """
    if not 0.0 <= probability < 0.5:
        raise ValueError(f"the probability of a flip must lie in [0, 1/2), got {probability}")
    straight = 1.0 - 2.0 * probability
    return Reading(of.weight * straight**2, ((1.0 + 2.0 * of.tilt) / straight - 1.0) / 2.0)


def uniform_choice_noise(probability: float, texts: int) -> Reading:
    """A choice out of several that was made blindly with this probability; of two, a flip with half of it.

    Raises:
        ValueError: The probability is not in [0, 1), or there are fewer than two texts.
    """
    if not 0.0 <= probability < 1.0:
        raise ValueError(f"the probability of a blind choice must lie in [0, 1), got {probability}")
    if texts < 2:
        raise ValueError(f"a choice needs two texts, got {texts}")
    return Reading((1.0 - probability) ** 2, probability / (1.0 - probability) / texts)


def ranking_stages(base_rewards_NK: npt.NDArray[Any], ranks: Sequence[int]) -> tuple[FloatArray, IntArray]:
    """Rows and stages of an order of N texts (Plackett 1975): each text is taken before all that are ranked lower.

    Texts of one rank are not compared. Of two texts it is a pair.

    Args:
        base_rewards_NK: The texts' base rewards.
        ranks: A number for each, the lower the better; only their order counts.

    Returns:
        Differences [J, K] and the stage of each [J], from 0.

    Raises:
        ValueError: There is not one rank for each text.
    """
    if len(ranks) != len(base_rewards_NK):
        raise ValueError(f"{len(base_rewards_NK)} texts need one rank each, got {len(ranks)}")
    ranks_N = np.asarray(ranks)
    taken_J, other_J = np.nonzero(ranks_N[:, None] < ranks_N[None, :])
    diffs_JK = np.asarray(base_rewards_NK[taken_J] - base_rewards_NK[other_J], dtype=np.float64)
    _, stage_J = np.unique(taken_J, return_inverse=True)
    return diffs_JK, stage_J.astype(np.int64)


def rating_groups(keys: Sequence[Hashable]) -> IntArray:
    """Groups of ratings, [R]: those of one key, such as a prompt, are compared; those alone at theirs among each other.

    Where a prompt has several ratings its level, how good any answer to it is, cancels. A rating that is alone at its
    prompt has nothing to be compared with but ratings of other prompts: the levels are noise then, more than the
    model says, but without it nothing at all would be learned from a user who rates one answer to each question.

    Returns:
        Numbers that depend on the set of keys only as long as keys sort; 0 is the group of those that are alone.
    """
    counts = Counter(keys)
    numbers = {key: number for number, key in enumerate(sorted((k for k in counts if counts[k] > 1), key=repr), 1)}
    return np.array([numbers.get(key, 0) for key in keys], dtype=np.int64)


def half_life_weights(ages: npt.ArrayLike, half_life: float | None) -> FloatArray:
    """What statements of these ages count: 2^(-age / half_life), and 1 where nothing is ever outdated (None).

    Args:
        ages: Not negative; relative to the newest statement, so that a user who is silent is not forgotten.
        half_life: Above 0, in the same unit.
    """
    ages_P = np.asarray(ages, dtype=np.float64)
    if half_life is None:
        return np.ones(ages_P.shape)
    if not half_life > 0:
        raise ValueError(f"the half-life must be above 0, got {half_life}")
    return np.exp2(-np.minimum(ages_P / half_life, _MOST_HALVINGS))
