"""Asking the server: people adapt, pair by pair, and answers are rewarded as they would."""

from __future__ import annotations

from typing import Final

import numpy as np
from metareward_client import Client, Pair, ScoreItem
from metareward_client.requests import Candidate
from numpy.typing import NDArray

from best_of_n_study.people import Answers, People, Question, questions
from service.cli.progress import progress

Array = NDArray[np.float64]

PAIRS: Final = (0, 5, 10, 20, 50)
"""Numbers of pairs after which everybody's reward is looked at."""

_AT_A_TIME: Final = 5
"""So many questions are asked before the person's reward is adapted to the answers."""


def base_rewards(client: Client, answers: Answers) -> Array:
    """What the checkpoint's heads say of answers: float64 [P, N, K]. The server keeps it: what follows is quick."""
    found = []
    with progress("answers read by the backbone, prompts", len(answers)) as advance:
        for prompt, texts in answers.items():
            score = client.score(prompt, list(texts), truncate=True, return_base_rewards=True)
            found.append(score.base_rewards)
            advance("")
    return np.array(found)


def rewards(client: Client, answers: Answers, user: str | None = None, version: int = 0) -> Array:
    """The rewards of one user, or of nobody in particular: float64 [P, N], log-odds."""
    items = [
        ScoreItem(prompt=prompt, completions=list(texts), user_id=user, min_version=version)
        for prompt, texts in answers.items()
    ]
    return np.array([score.rewards for score in client.score_many(items, truncate=True)])


def own_rewards(
    client: Client, people: People, told_about: Answers, judged: Answers, *, suggested: bool, prefix: str
) -> dict[int, Array]:
    """Everybody's own reward after 0, 5, 10, 20 and 50 pairs, each of them with all pairs before.

    Args:
        client: The server.
        people: Who chooses.
        told_about: Answers that their pairs are of.
        judged: Answers that are rewarded, as many to each prompt.
        suggested: Whether the server chooses the questions, or chance.
        prefix: Of the users' ids; those users are erased afterwards.

    Returns:
        By number of pairs float64 [U, P, N], log-odds.
    """
    found: dict[int, list[Array]] = {shots: [] for shots in PAIRS}
    with progress(
        "people, questions suggested" if suggested else "people, questions by chance", len(people)
    ) as advance:
        for person in range(len(people)):
            user, version, told = f"{prefix}-{person}", 0, 0
            by_chance = questions(told_about, PAIRS[-1], (people.seed, person))
            for shots in PAIRS:
                while told < shots:
                    asked = by_chance[told : told + _AT_A_TIME]
                    if suggested:
                        best = _suggested(client, user, version, told_about, len(asked))
                        # where too few are left that would tell anything, chance goes on
                        asked = best + asked[len(best) :]
                    pairs = [_answered(people, person, told + number, each) for number, each in enumerate(asked)]
                    version = client.adapt(user, pairs, truncate=True).version
                    told += len(pairs)
                found[shots].append(rewards(client, judged, user, version))
            client.erase(user)
            advance("")
    return {shots: np.stack(each) for shots, each in found.items()}


def _suggested(client: Client, user: str, version: int, answers: Answers, count: int) -> list[Question]:
    prompts = list(answers)
    candidates = [Candidate(prompt=prompt, completions=list(dict.fromkeys(answers[prompt]))) for prompt in prompts]
    best = client.suggest(user, candidates, count=count, min_version=version, truncate=True).suggestions
    shown = [(prompts[each.candidate], candidates[each.candidate].completions, each) for each in best]
    return [Question(prompt, texts[each.a], texts[each.b]) for prompt, texts, each in shown]


def _answered(people: People, person: int, number: int, asked: Question) -> Pair:
    chosen, rejected = people.choice(person, asked, number)
    return Pair(prompt=asked.prompt, chosen=chosen, rejected=rejected)
