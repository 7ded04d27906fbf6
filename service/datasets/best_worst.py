"""Pairs of a best and a worst completion: a data set for direct preference optimisation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scipy.special import expit

from service.datasets.candidates import ScoredRow


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which pairs to take.

    Attributes:
        per_prompt: Of one row at most: the best against the worst, the second best against the second worst, ...
        min_margin: The least difference of rewards, in log-odds.
        min_probability: The least calibrated probability that the user prefers the chosen one.
        conversational: Whether prompts that are text become messages too.
    """

    per_prompt: int = 1
    min_margin: float = 0.0
    min_probability: float = 0.5
    conversational: bool = False


def pairs_of(row: ScoredRow, pairing: Pairing) -> Iterator[dict[str, Any] | None]:
    """Pairs of one row, the widest first; None for one that is too narrow.

    A completion that stands there twice counts once. Two different completions of equal reward are never a pair.
    The probability is the logistic of the margin, as in Bradley and Terry's model.
    """
    rewards: dict[str, float] = {}
    for completion, reward in zip(row.completions, row.rewards, strict=True):
        rewards.setdefault(completion, reward)
    ranked = sorted(rewards.items(), key=lambda each: -each[1])
    for (chosen, best), (rejected, worst), _ in zip(
        ranked[: len(ranked) // 2], reversed(ranked), range(pairing.per_prompt), strict=False
    ):
        margin = best - worst
        probability = float(expit(margin))
        if margin <= 0 or margin < pairing.min_margin or probability < pairing.min_probability:
            yield None
            continue
        as_messages = pairing.conversational or not isinstance(row.prompt, str)
        prompt = (
            [{"role": "user", "content": row.prompt}] if as_messages and isinstance(row.prompt, str) else row.prompt
        )
        yield {
            **({} if row.id is None else {"id": row.id}),
            "prompt": prompt,
            "chosen": _answer(chosen) if as_messages else chosen,
            "rejected": _answer(rejected) if as_messages else rejected,
            "user_id": row.user_id,
            "chosen_reward": best,
            "rejected_reward": worst,
            "margin": margin,
            "probability": probability,
        }


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
