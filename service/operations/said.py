"""What a user said, and the evidence that it is once the base rewards of its texts are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from service.mrm.statements import PLAIN, TIE
from service.operations.texts import (
    GroupKeys,
    Message,
    Text,
    pair_content_key,
    ranking_content_key,
    rating_content_key,
    tie_content_key,
)
from service.store.records import EvidenceKind, NewEvidence, StoredEvidence


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One choice of a user.

    Attributes:
        messages: The prompt.
        chosen: The completion that the user preferred.
        rejected: The other one.
        strength: How strongly it was felt, on the user's own scale; None for a plain choice.
        id: The caller's name for it, or None: then what it says is its name, and saying it twice changes nothing.
        tie: Whether the user likes both as much.
        event_time: When it was said (aware); None: now.
    """

    messages: Sequence[Message]
    chosen: str
    rejected: str
    strength: float | None
    id: str | None
    tie: bool = False
    event_time: datetime | None = None

    @property
    def completions(self) -> Sequence[tuple[str, str]]:
        """Each with where it stands."""
        return [("chosen", self.chosen), ("rejected", self.rejected)]


@dataclass(frozen=True, slots=True)
class Rating:
    """How much a user liked one completion, on their own scale; ratings are compared within their group.

    Attributes:
        messages: The prompt.
        completion: What was rated.
        rating: The higher the better.
        group: The caller's name for what it is compared with; None: the ratings of this prompt.
        id: As of a pair.
        event_time: As of a pair.
    """

    messages: Sequence[Message]
    completion: str
    rating: float
    group: str | None = None
    id: str | None = None
    event_time: datetime | None = None

    @property
    def completions(self) -> Sequence[tuple[str, str]]:
        """Each with where it stands."""
        return [("completion", self.completion)]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Completions of one prompt in the order of a user's liking.

    Attributes:
        messages: The prompt.
        ranked: The completions.
        ranks: Of each, the lower the better, equal is tied; None: the best first.
        id: As of a pair.
        event_time: As of a pair.
    """

    messages: Sequence[Message]
    ranked: Sequence[str]
    ranks: Sequence[int] | None = None
    id: str | None = None
    event_time: datetime | None = None

    @property
    def completions(self) -> Sequence[tuple[str, str]]:
        """Each with where it stands."""
        return [(f"completions[{i}]", completion) for i, completion in enumerate(self.ranked)]


Statement = PreferencePair | Rating | Ranking


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Evidence, and the texts that it was made from in the order in which it has them.

    Attributes:
        evidence: To be stored.
        texts: Indices into the texts of the request.
    """

    evidence: NewEvidence
    texts: Sequence[int]


def texts_of(statement: Statement, field: str) -> list[Text]:
    """What must be scored for a statement that stands at `field` of the request."""
    return [Text(statement.messages, completion, f"{field}.{part}") for part, completion in statement.completions]


def measure(
    statement: Statement,
    field: str,
    keys: Sequence[bytes],
    rewards_BK: npt.NDArray[np.float64],
    first: int,
    groups: GroupKeys,
) -> Measured:
    """The evidence that a statement is.

    Args:
        statement: What the user said.
        field: Where it stands in the request.
        keys: The text_key of each of the request's texts.
        rewards_BK: Their base rewards.
        first: Index of the statement's first text among them; the others follow it.
        groups: Names what ratings are compared with.
    """
    kind: EvidenceKind = "pair"
    grade: float | None = None
    ranks: tuple[int, ...] | None = None
    group: bytes | None = None
    tilt = PLAIN.tilt
    texts = list(range(first, first + len(statement.completions)))
    match statement:
        case PreferencePair():
            if statement.tie:
                # In one order, whichever way round it was sent: it is the same tie, to the last bit.
                texts.sort(key=lambda i: keys[i])
                content_key, tilt = tie_content_key([keys[i] for i in texts]), TIE.tilt
            else:
                grade = statement.strength
                content_key = pair_content_key(keys[texts[0]], keys[texts[1]], grade)
            base_rewards = rewards_BK[texts[0]] - rewards_BK[texts[1]]
        case Rating():
            kind, grade = "rating", statement.rating
            group = groups.prompt(statement.messages) if statement.group is None else groups.named(statement.group)
            content_key = rating_content_key(keys[first], grade, group)
            base_rewards = rewards_BK[first]
        case Ranking():
            kind = "ranking"
            told = statement.ranks if statement.ranks is not None else range(len(texts))
            places = {rank: place for place, rank in enumerate(sorted(set(told)))}
            order = sorted((places[rank], keys[i], i) for rank, i in zip(told, texts, strict=True))
            ranks = tuple(place for place, _, _ in order)
            texts = [i for _, _, i in order]
            content_key = ranking_content_key([keys[i] for i in texts], ranks)
            base_rewards = rewards_BK[texts]
    return Measured(
        NewEvidence(
            evidence_id=content_key.hex() if statement.id is None else statement.id,
            content_key=content_key,
            kind=kind,
            base_rewards=base_rewards,
            grade=grade,
            ranks=ranks,
            group=group,
            tilt=tilt,
            event_time=statement.event_time,
            field=field,
        ),
        texts,
    )


def is_tie(evidence: StoredEvidence) -> bool:
    """Whether a user said that they like both sides of a pair as much."""
    return evidence.kind == "pair" and evidence.source is None and evidence.tilt == TIE.tilt
