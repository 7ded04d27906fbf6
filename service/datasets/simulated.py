"""Simulated people: known tastes, own prompts and answers, noisy choices.

Seen people choose among answers on the training topics in the words of the training bank; unseen people among answers
on other topics in other words, and each unseen person's support and query pairs are on different topics. So a method
that does well on the query pairs has learned the tastes, not the texts.

What this leaves out: people here judge the surface only, never whether an answer is right, and their tastes are linear.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.datasets import simulated_topics, simulated_topics_heldout
from service.datasets.manifest import write_json
from service.datasets.simulated_phrases import HELD_OUT, TRAINING, PhraseBank
from service.datasets.simulated_texts import Topic, draw_style, parse_topics, write_answer
from service.datasets.surface_features import AXES, FEATURE_MEAN, FEATURE_SCALE, surface_features
from service.datasets.taste import draw_tastes, population_taste, preference_probability
from service.errors import ConfigurationError

TRAINING_TOPICS: Final = parse_topics(simulated_topics.TOPICS)
HELD_OUT_TOPICS: Final = parse_topics(simulated_topics_heldout.TOPICS)

_features = lru_cache(maxsize=None)(surface_features)


@dataclass(frozen=True)
class Person:
    """One simulated person.

    Attributes:
        id: `seen-0007`, `unseen-0003`.
        taste: float64 [6], weights of the standardised surface features, in the order of `AXES`.
    """

    id: str
    taste: NDArray[np.float64]

    def utility(self, completion: str) -> float:
        """What the person thinks of a completion, in Bradley-Terry log-odds; any text, not only simulated ones."""
        return float(self.taste @ _features(completion))


@dataclass(frozen=True)
class SimulatedPair:
    """One choice. `split` and `part` are those of the jsonl rows."""

    user_id: str
    prompt: str
    chosen: str
    rejected: str
    conversation_id: str
    split: str
    part: str

    def as_row(self) -> dict[str, Any]:
        """The pair as a row of `metareward embed --format jsonl`."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Prompt:
    """A question about a topic and the answers that people compare."""

    topic: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class SimulatedPeople:
    """A simulated population and its choices.

    Attributes:
        seed: Makes everything.
        people: Seen people first.
        prompts: Training prompts first.
        pairs: Every choice, person by person; an unseen person's support pairs in order.
    """

    seed: int
    people: tuple[Person, ...]
    prompts: tuple[Prompt, ...]
    pairs: tuple[SimulatedPair, ...]

    @cached_property
    def person(self) -> dict[str, Person]:
        """People by id."""
        return {person.id: person for person in self.people}

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Every different (prompt, completion) that some pair names, by first appearance."""
        found: dict[tuple[str, str], None] = {}
        for pair in self.pairs:
            found[pair.prompt, pair.chosen] = None
            found[pair.prompt, pair.rejected] = None
        return list(found)

    def true_utility(self, person: str | Person, completion: str) -> float:
        """What `person` (or the person of that id) thinks of a completion, in log-odds."""
        return (self.person[person] if isinstance(person, str) else person).utility(completion)

    def accuracy(self, taste: NDArray[np.float64] | None = None, part: str | None = None) -> float:
        """Share of the choices that a taste predicts: each person's own, or `taste` for everybody.

        Args:
            taste: float64 [6]; None for the truth.
            part: Only pairs of this part (`train`, `support`, `query`).
        """
        hits = [
            float((self.person[pair.user_id].taste if taste is None else taste) @ difference > 0)
            for pair in self.pairs
            if part in {None, pair.part}
            for difference in [_features(pair.chosen) - _features(pair.rejected)]
        ]
        return float(np.mean(hits))

    def as_json(self) -> dict[str, Any]:
        """Who the people are: what `people.json` holds."""
        return {
            "seed": self.seed,
            "axes": list(AXES),
            "feature_mean": list(FEATURE_MEAN),
            "feature_scale": list(FEATURE_SCALE),
            "population_taste": population_taste().tolist(),
            "accuracy": {
                "true_taste": round(self.accuracy(), 4),
                "population_taste": round(self.accuracy(population_taste()), 4),
            },
            "people": [{"id": person.id, "taste": person.taste.tolist()} for person in self.people],
        }

    def write(self, pairs_file: Path, people_file: Path) -> None:
        """Write the pairs as jsonl rows and the people as JSON, each whole or not at all."""
        partial = pairs_file.with_name(pairs_file.name + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            for pair in self.pairs:
                file.write(json.dumps(pair.as_row(), ensure_ascii=False) + "\n")
        partial.replace(pairs_file)
        write_json(people_file, self.as_json())


def _write_prompts(
    topics: tuple[Topic, ...], bank: PhraseBank, answers: int, rng: np.random.Generator
) -> tuple[Prompt, ...]:
    prompts = []
    for topic in topics:
        for form in bank.questions[topic.kind]:
            different: dict[str, None] = {}
            while len(different) < answers:
                different[write_answer(topic, draw_style(rng), bank, rng)] = None
            prompts.append(Prompt(topic.name, form.format(t=topic.name), tuple(different)))
    return tuple(prompts)


def _choices(
    person: Person, prompts: tuple[Prompt, ...], pairs: int, split: str, part: str, rng: np.random.Generator
) -> Iterator[SimulatedPair]:
    """`pairs` choices of one person: prompts without repetition while there are enough, two different answers each."""
    order = np.concatenate([rng.permutation(len(prompts)) for _ in range(-(-pairs // len(prompts)))])[:pairs]
    for number in order.tolist():
        prompt = prompts[number]
        first, second = rng.permutation(len(prompt.answers))[:2].tolist()
        a, b = prompt.answers[first], prompt.answers[second]
        prefers_a = rng.random() < preference_probability(person.utility(a), person.utility(b))
        yield SimulatedPair(
            user_id=person.id,
            prompt=prompt.question,
            chosen=a if prefers_a else b,
            rejected=b if prefers_a else a,
            conversation_id=prompt.question,
            split=split,
            part=part,
        )


def simulate(
    seed: int,
    users: int = 400,
    pairs_per_user: int = 40,
    *,
    unseen_share: float = 0.25,
    support_pairs: int = 50,
    query_pairs: int = 50,
    answers_per_prompt: int = 16,
) -> SimulatedPeople:
    """Simulate people and their choices.

    Args:
        seed: The same seed gives the same people, texts and choices on every machine.
        users: People, seen and unseen.
        pairs_per_user: Training pairs of a seen person.
        unseen_share: Share of the people that are unseen, strictly between 0 and 1.
        support_pairs: Support pairs of an unseen person.
        query_pairs: Query pairs of an unseen person, on other topics than the support pairs.
        answers_per_prompt: Different answers that exist of each prompt; people share them, so embedding stays cheap.

    Raises:
        ConfigurationError: A number that leaves nobody or nothing; the message names it.
    """
    limits = {
        "users": (users, 2),
        "pairs_per_user": (pairs_per_user, 1),
        "support_pairs": (support_pairs, 1),
        "query_pairs": (query_pairs, 1),
        "answers_per_prompt": (answers_per_prompt, 2),
    }
    for name, (value, least) in limits.items():
        if value < least:
            raise ConfigurationError(f"{name} must be at least {least}, got {value}")
    if not 0 < unseen_share < 1:
        raise ConfigurationError(f"unseen_share must lie strictly between 0 and 1, got {unseen_share}")
    # A stream each, so that more people do not change the texts.
    text_rng, heldout_rng, taste_rng, choice_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)
    )
    training = _write_prompts(TRAINING_TOPICS, TRAINING, answers_per_prompt, text_rng)
    heldout = _write_prompts(HELD_OUT_TOPICS, HELD_OUT, answers_per_prompt, heldout_rng)
    unseen = min(users - 1, max(1, round(users * unseen_share)))
    tastes = draw_tastes(users, taste_rng)
    names = [f"seen-{n:04d}" for n in range(users - unseen)] + [f"unseen-{n:04d}" for n in range(unseen)]
    people = tuple(Person(name, taste) for name, taste in zip(names, tastes, strict=True))
    pairs: list[SimulatedPair] = []
    for person in people:
        if person.id.startswith("seen"):
            pairs += _choices(person, training, pairs_per_user, "seen", "train", choice_rng)
            continue
        order = choice_rng.permutation(len(HELD_OUT_TOPICS))
        support_topics = {HELD_OUT_TOPICS[index].name for index in order[: len(order) // 2].tolist()}
        support = tuple(prompt for prompt in heldout if prompt.topic in support_topics)
        query = tuple(prompt for prompt in heldout if prompt.topic not in support_topics)
        pairs += _choices(person, support, support_pairs, "unseen", "support", choice_rng)
        pairs += _choices(person, query, query_pairs, "unseen", "query", choice_rng)
    return SimulatedPeople(seed, people, training + heldout, tuple(pairs))
