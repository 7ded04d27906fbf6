"""Simulated people: known tastes, own prompts and answers, noisy choices.

Seen people choose among answers on the training topics in the words of the training bank; unseen people among answers
on other topics in other words, and each unseen person's support and query pairs are on different topics. So a method
that does well on the query pairs has learned the tastes, not the texts.

What this leaves out: people here judge the surface only, never whether an answer is right, and their tastes are linear.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.datasets.manifest import write_json
from service.datasets.simulated_choices import (
    Behaviour,
    RatingScale,
    draw_scales,
    perceived_difference,
    scale_for_consistency,
)
from service.datasets.simulated_drift import Change, draw_changes
from service.datasets.simulated_phrases_heldout import HELD_OUT
from service.datasets.simulated_phrases_training import TRAINING
from service.datasets.simulated_prompts import HELD_OUT_TOPICS, TRAINING_TOPICS, Prompt, write_prompts
from service.datasets.surface_features import AXES, FEATURE_MEAN, FEATURE_SCALE, surface_features
from service.datasets.taste import draw_tastes, population_taste
from service.errors import ConfigurationError

_features = lru_cache(maxsize=None)(surface_features)
_DECIMALS = 6


@dataclass(frozen=True)
class Person:
    """One simulated person.

    Attributes:
        id: `seen-0007`, `unseen-0003`.
        taste: float64 [14], weights of the standardised surface features in log-odds, in the order of `AXES`.
        kind: One of `service.datasets.taste.KINDS`.
        contrarian: Whether the taste is turned round.
        decided: The factor, part of `taste`, that makes the person's choices surer (above 1) or less sure than others'.
        scale: How the person grades.
        change: What was liked before; `taste` is then the last one, which query pairs follow. None: always the same.
    """

    id: str
    taste: NDArray[np.float64]
    kind: str
    contrarian: bool
    decided: float
    scale: RatingScale
    change: Change | None = None

    def taste_at(self, time: float) -> NDArray[np.float64]:
        """The taste float64 [14] at a time between 0, the first support pair, and 1, the last one and all queries."""
        return self.taste if self.change is None else self.change.taste_at(time, self.taste)

    def utility(self, completion: str, time: float = 1.0) -> float:
        """What the person thinks of a completion, in Bradley-Terry log-odds; any text, not only simulated ones."""
        return float(self.taste_at(time) @ _features(completion))

    def as_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        plain = {name: value for name, value in asdict(self).items() if name != "change"}
        changed = {} if self.change is None else {"change": self.change.as_json()}
        return {**plain, "taste": self.taste.tolist(), **changed}


@dataclass(frozen=True)
class SimulatedPair:
    """One choice. `split` and `part` are those of the jsonl rows; `strength` is None where choices are not graded.

    `time` is when the choice was made, from 0 for a person's first support pair to 1 for the last and for all others.
    Rows do not have it: they are in order.
    """

    user_id: str
    prompt: str
    chosen: str
    rejected: str
    conversation_id: str
    split: str
    part: str
    strength: float | None = None
    time: float = 1.0

    def as_row(self) -> dict[str, Any]:
        """The pair as a row of `metareward embed --format jsonl`."""
        return {name: value for name, value in self.__dict__.items() if value is not None and name != "time"}


@dataclass(frozen=True)
class SimulatedPeople:
    """A simulated population and its choices.

    Attributes:
        seed: Makes everything.
        behaviour: How the people answer.
        people: Seen people first.
        prompts: Training prompts first.
        pairs: Every choice, person by person; an unseen person's support pairs in order.
        population_taste: float64 [14], the mean of the tastes that people are drawn from, in log-odds.
    """

    seed: int
    behaviour: Behaviour
    people: tuple[Person, ...]
    prompts: tuple[Prompt, ...]
    pairs: tuple[SimulatedPair, ...]
    population_taste: NDArray[np.float64]

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

    @cached_property
    def differences(self) -> NDArray[np.float64]:
        """Features of the chosen completion less those of the rejected one: float64 [P, 14]."""
        return np.array([_features(pair.chosen) - _features(pair.rejected) for pair in self.pairs])

    def true_utility(self, person: str | Person, completion: str) -> float:
        """What `person` (or the person of that id) thinks of a completion, in log-odds."""
        return (self.person[person] if isinstance(person, str) else person).utility(completion)

    def accuracy(self, taste: NDArray[np.float64] | None = None, part: str | None = None) -> float:
        """Share of the choices that a taste predicts: each person's own, or `taste` for everybody.

        Args:
            taste: float64 [14]; None for the truth, as it was when each choice was made.
            part: Only pairs of this part (`train`, `support`, `query`).
        """
        if taste is None:
            taste_PD = np.array([self.person[pair.user_id].taste_at(pair.time) for pair in self.pairs])
            hit_P = (taste_PD * self.differences).sum(1) > 0
        else:
            hit_P = self.differences @ taste > 0
        return float(hit_P[[part in {None, pair.part} for pair in self.pairs]].mean())

    def as_json(self) -> dict[str, Any]:
        """Who the people are: what `people.json` holds."""
        return {
            "seed": self.seed,
            "behaviour": asdict(self.behaviour),
            "axes": list(AXES),
            "feature_mean": list(FEATURE_MEAN),
            "feature_scale": list(FEATURE_SCALE),
            "population_taste": self.population_taste.tolist(),
            "accuracy": {
                "true_taste": round(self.accuracy(), 4),
                "population_taste": round(self.accuracy(self.population_taste), 4),
            },
            "people": [person.as_json() for person in self.people],
        }

    def write(self, pairs_file: Path, people_file: Path) -> None:
        """Write the pairs as jsonl rows and the people as JSON, each whole or not at all."""
        partial = pairs_file.with_name(pairs_file.name + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            for pair in self.pairs:
                file.write(json.dumps(pair.as_row(), ensure_ascii=False) + "\n")
        partial.replace(pairs_file)
        write_json(people_file, self.as_json())


@dataclass(frozen=True)
class _Asked:
    """A question to one person: a or b?"""

    user: int
    prompt: Prompt
    a: str
    b: str
    part: str
    time: float


def _ask(user: int, prompts: tuple[Prompt, ...], pairs: int, part: str, rng: np.random.Generator) -> Iterator[_Asked]:
    """`pairs` questions: prompts without repetition while there are enough, two different answers each."""
    order = np.concatenate([rng.permutation(len(prompts)) for _ in range(-(-pairs // len(prompts)))])[:pairs]
    for place, number in enumerate(order.tolist()):
        prompt = prompts[number]
        time = place / (pairs - 1) if part == "support" and pairs > 1 else 1.0
        first, second = rng.permutation(len(prompt.answers))[:2].tolist()
        yield _Asked(user, prompt, prompt.answers[first], prompt.answers[second], part, time)


def _answer(asked: _Asked, person: Person, behaviour: Behaviour, rng: np.random.Generator) -> SimulatedPair:
    margin = person.utility(asked.a, asked.time) - person.utility(asked.b, asked.time)
    difference = perceived_difference(margin, behaviour.lapse, rng)
    chosen, rejected = (asked.a, asked.b) if difference > 0 else (asked.b, asked.a)
    return SimulatedPair(
        user_id=person.id,
        prompt=asked.prompt.question,
        chosen=chosen,
        rejected=rejected,
        conversation_id=asked.prompt.question,
        split="seen" if asked.part == "train" else "unseen",
        part=asked.part,
        strength=person.scale.strength(difference) if behaviour.graded else None,
        time=asked.time,
    )


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        users: People, seen and unseen.
        unseen_share: Share of the people that are unseen, strictly between 0 and 1.
        pairs: Training pairs of a seen person.
        support_pairs: Support pairs of an unseen person.
        query_pairs: Query pairs of an unseen person, on other topics than the support pairs.
        prompts: Prompts of the seen people.
        new_prompts: Prompts of the unseen people: one for each of two topics at least.
        answers: Different answers that exist of each prompt; people share them, so embedding stays cheap.
    """

    users: int = 400
    unseen_share: float = 0.25
    pairs: int = 40
    support_pairs: int = 50
    query_pairs: int = 50
    prompts: int = 288
    new_prompts: int = 104
    answers: int = 16

    def __post_init__(self) -> None:
        at_least_two = ("users", "new_prompts", "answers")
        for name in ("users", "pairs", "support_pairs", "query_pairs", "prompts", "new_prompts", "answers"):
            least = 2 if name in at_least_two else 1
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.unseen_share < 1:
            raise ConfigurationError(f"unseen_share must lie strictly between 0 and 1, got {self.unseen_share}")

    @property
    def unseen(self) -> int:
        """Number of unseen people; there are some of both."""
        return min(self.users - 1, max(1, round(self.users * self.unseen_share)))


_SIZES = Sizes()
_BEHAVIOUR = Behaviour()


def simulate(seed: int, sizes: Sizes = _SIZES, behaviour: Behaviour = _BEHAVIOUR) -> SimulatedPeople:
    """Simulate people and their choices.

    Args:
        seed: The same seed gives the same people, texts and choices on every machine.
        sizes: How much of everything.
        behaviour: Who the people are and how they answer.

    Raises:
        ConfigurationError: The consistency is out of reach.
    """
    # A stream each, so that more people do not change the texts, nor other noise the questions.
    text_rng, heldout_rng, taste_rng, asking_rng, noise_rng, scale_rng, change_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(7)
    )
    training = write_prompts(TRAINING_TOPICS, TRAINING, sizes.prompts, sizes.answers, text_rng)
    heldout = write_prompts(HELD_OUT_TOPICS, HELD_OUT, sizes.new_prompts, sizes.answers, heldout_rng)
    drawn, before = (
        draw_tastes(
            people,
            rng,
            kinds=behaviour.kinds,
            contrarians=behaviour.contrarians,
            decided_spread=behaviour.decided_spread,
        )
        for people, rng in ((sizes.users, taste_rng), (sizes.unseen, change_rng))
    )
    seen = sizes.users - sizes.unseen
    # seen people are what everybody is learned from: they stay as they are
    changes = [None] * seen + draw_changes(behaviour.drift, before.taste_UD, change_rng)
    asked: list[_Asked] = []
    for user in range(sizes.users):
        if user < seen:
            asked += _ask(user, training, sizes.pairs, "train", asking_rng)
            continue
        topics = list(dict.fromkeys(prompt.topic for prompt in heldout))
        order = asking_rng.permutation(len(topics)).tolist()
        support_topics = {topics[index] for index in order[: len(order) // 2]}
        support = tuple(prompt for prompt in heldout if prompt.topic in support_topics)
        query = tuple(prompt for prompt in heldout if prompt.topic not in support_topics)
        asked += _ask(user, support, sizes.support_pairs, "support", asking_rng)
        asked += _ask(user, query, sizes.query_pairs, "query", asking_rng)

    def taste_of(one: _Asked) -> NDArray[np.float64]:
        change, taste_D = changes[one.user], drawn.taste_UD[one.user]
        return taste_D if change is None else change.taste_at(one.time, taste_D)

    margins_P = np.array([taste_of(one) @ (_features(one.a) - _features(one.b)) for one in asked])
    factor = scale_for_consistency(margins_P, behaviour)
    people = tuple(
        Person(
            id=f"seen-{user:04d}" if user < seen else f"unseen-{user - seen:04d}",
            taste=np.round(factor * drawn.taste_UD[user], _DECIMALS),
            kind=drawn.kinds[user],
            contrarian=bool(drawn.contrarian_U[user]),
            decided=float(drawn.decided_U[user]),
            scale=scale,
            change=None if (change := changes[user]) is None else change.scaled(factor),
        )
        for user, scale in enumerate(draw_scales(sizes.users, scale_rng))
    )
    mean = population_taste(contrarians=behaviour.contrarians, decided_spread=behaviour.decided_spread)
    return SimulatedPeople(
        seed=seed,
        behaviour=behaviour,
        people=people,
        prompts=training + heldout,
        pairs=tuple(_answer(one, people[one.user], behaviour, noise_rng) for one in asked),
        population_taste=np.round(factor * mean, _DECIMALS),
    )
