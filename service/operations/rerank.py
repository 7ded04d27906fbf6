"""The documents of a query in the order of a user's liking, as rerankers tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.mrm.combine import average_probability
from service.operations.score import Scored


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One document: where it stood in the request, its reward, and that as a probability of 0 to 1.

    `relevance_score` is `average_probability`; `reward_std` is None where the recipe has no posterior.
    """

    index: int
    relevance_score: float
    reward: float
    reward_std: float | None


def best_first(scored: Scored, top_n: int | None) -> list[RankedDocument]:
    """The documents of a scored item from best to worst, at most `top_n`.

    The order is that of the rewards: far from the average, probabilities are equal to the last bit.
    """
    relevance_B = average_probability(np.array(scored.rewards))
    stds: Sequence[float | None] = scored.reward_std or [None] * len(scored.rewards)
    return [
        RankedDocument(index, float(relevance_B[index]), scored.rewards[index], stds[index])
        for index in scored.order[:top_n]
    ]
