"""Simulated people who judge any text: tastes of style over fourteen measured features, choices with noise.

They come from the population that the demo checkpoint's people came from (`service.datasets.taste`), drawn anew. What a
person thinks of an answer is taste . features(answer), in log-odds, and of two answers a is chosen with probability
sigmoid(utility(a) - utility(b)), as in `metareward simulate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from service.datasets.simulated_choices import Behaviour, perceived_difference, scale_for_consistency
from service.datasets.surface_features import surface_features
from service.datasets.taste import draw_tastes

features = lru_cache(maxsize=None)(surface_features)
"""Of a text, float64 [14]; kept."""

Answers = Mapping[str, Sequence[str]]
"""Answers by prompt."""


@dataclass(frozen=True)
class Question:
    """Two answers to one prompt, to be compared."""

    prompt: str
    a: str
    b: str


@dataclass(frozen=True)
class People:
    """U people.

    Attributes:
        taste_UF: float64 [U, 14], log-odds for each standardised feature, in the order of `surface_features.AXES`.
        kinds: The name of each one's kind.
        seed: Drew them; also seeds the noise of their choices.
    """

    taste_UF: NDArray[np.float64]
    kinds: list[str]
    seed: int

    def __len__(self) -> int:
        return len(self.taste_UF)

    def utilities(self, answers: Answers) -> NDArray[np.float64]:
        """What everybody thinks of every answer: float64 [U, P, N], log-odds."""
        features_PNF = np.array([[features(text) for text in texts] for texts in answers.values()])
        return np.asarray(np.einsum("uf,pnf->upn", self.taste_UF, features_PNF))

    def choice(self, person: int, question: Question, number: int) -> tuple[str, str]:
        """What a person takes and what not, with the noise of the person's choice of that number."""
        difference_F = features(question.a) - features(question.b)
        noise = np.random.default_rng([self.seed, person, number])
        takes_a = perceived_difference(float(self.taste_UF[person] @ difference_F), 0.0, noise) > 0
        return (question.a, question.b) if takes_a else (question.b, question.a)


def draw_people(count: int, seed: int, answers: Answers) -> People:
    """Draw people whose choices between two of `answers` to a prompt are right by their own taste 85 times in 100.

    `metareward simulate` scales its people's tastes to that consistency too. The scale is found with a thousand people
    of its own, so that it is the same whoever is drawn.

    Args:
        count: How many.
        seed: Draws them.
        answers: What they are asked about.
    """
    differences_QF = np.concatenate([_differences(texts) for texts in answers.values()])
    margins_UQ = draw_tastes(1000, np.random.default_rng(0)).taste_UD @ differences_QF.T
    factor = scale_for_consistency(margins_UQ.ravel(), Behaviour())
    drawn = draw_tastes(count, np.random.default_rng([1, seed]))
    return People(factor * drawn.taste_UD, drawn.kinds, seed)


def _differences(texts: Sequence[str]) -> NDArray[np.float64]:
    """Differences of the features of every two texts: float64 [Q, 14]."""
    features_NF = np.array([features(text) for text in texts])
    first, second = np.triu_indices(len(texts), 1)
    return np.asarray(features_NF[first] - features_NF[second])


def questions(answers: Answers, count: int, seed: Sequence[int]) -> list[Question]:
    """Questions for one person: prompts in an order of their own, again and again, two different answers to each."""
    random = np.random.default_rng(list(seed))
    prompts = list(answers)
    order = np.concatenate([random.permutation(len(prompts)) for _ in range(-(-count // len(prompts)))])[:count]
    asked = []
    for place in order.tolist():
        texts = list(dict.fromkeys(answers[prompts[place]]))
        a, b = random.permutation(len(texts))[:2].tolist()
        asked.append(Question(prompts[place], texts[a], texts[b]))
    return asked
