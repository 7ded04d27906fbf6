"""From what a user was seen doing to evidence: comparisons that count as much as such events can be trusted.

An event shows a comparison, and may mislead. With eps its noise, it is by chance with probability 2 eps and else shows
what the user prefers: between two texts it points at the wrong one with probability eps, among n it may point at any.
Its comparison counts its trust, 1 - 2 eps, of an answer: how often it speaks. For a user of whom little is known that
is the gradient of the exact likelihood of a choice that may be by chance, and however surely the user is known to
prefer the other text, no event pulls harder than that much of an answer. Trusts of what can mislead in ways that know
nothing of each other multiply:

- a text that stood alone is compared with the average text, whose base rewards are 0; it is the prompt, too, that makes
  a text better or worse than the average: such events also have the noise `alone`;
- of two times of reading, t and s, the longer is preferred, with the noise of the source and with min(t, s) / (t + s),
  as if the logarithm of their ratio were the logit: the trust of the times is |t - s| / (t + s).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, get_args

import numpy as np

from service.backbone.protocol import Message
from service.errors import FieldIssue
from service.mrm.state import FloatArray
from service.operations.said import Measured
from service.store.records import EvidenceKind, NewEvidence

Source = Literal["chosen", "regenerated", "copied", "edited", "dwell", "thumbs"]
SOURCES: Final[tuple[Source, ...]] = get_args(Source)

# What counts less than this part of an answer says nothing: times of reading are not measured so well.
_LEAST_TRUST: Final = 0.01


@dataclass(frozen=True, slots=True)
class FeedbackNoise:
    """How far events are to be trusted.

    Attributes:
        by_source: The noise of each source; one that is not here, or has 1/2, is not taken.
        alone: The further noise of a comparison with the average text; from 1/2 on there are none.
    """

    by_source: Mapping[Source, float]
    alone: float

    def trust(self, source: Source, *, alone: bool = False) -> float:
        """The part of an answer that a comparison counts, 0 where it is not taken."""
        trust = 1.0 - 2.0 * self.by_source.get(source, 0.5)
        return trust * max(0.0, 1.0 - 2.0 * self.alone) if alone else trust


@dataclass(frozen=True, slots=True)
class FeedbackEvent:
    """One thing that a user was seen doing, as a comparison.

    Attributes:
        source: What kind of thing.
        messages: The prompt.
        completions: All different; the first is the one that they acted on. Alone it is compared with the average.
        favours: Whether the act speaks for the first, or against it.
        seconds: Of `dwell`: how long each was read; then `favours` says nothing.
        fields: Path of each completion in the request.
        field: Path of the event.
        id: The caller's name for it, or None: then what it says is its name.
        event_time: When it was seen (aware); None: now.
    """

    source: Source
    messages: Sequence[Message]
    completions: Sequence[str]
    favours: bool
    fields: Sequence[str]
    field: str
    seconds: Sequence[float] | None = None
    id: str | None = None
    event_time: datetime | None = None


def issues_of(event: FeedbackEvent, noise: FeedbackNoise) -> Iterator[FieldIssue]:
    """Why an event cannot be taken: its source is switched off, or it says nothing."""
    setting = f"FEEDBACK_NOISE_{event.source.upper()}"
    if noise.trust(event.source) < _LEAST_TRUST:
        yield FieldIssue(f"{event.field}.type", f"is not taken by this server ({setting}); leave such events out")
    elif event.seconds is not None:
        first, *others = event.seconds
        if all(_trust_of_times(first, other) < _LEAST_TRUST for other in others):
            yield FieldIssue(f"{event.field}.seconds", "is the time of all others, which says nothing; drop the event")
    elif len(event.completions) == 1 and noise.trust(event.source, alone=True) < _LEAST_TRUST:
        yield FieldIssue(
            f"{event.field}.{'replacement' if event.source == 'regenerated' else 'shown'}",
            f"is missing: this server takes no events about one text alone (FEEDBACK_NOISE_ALONE, {setting}); add it, "
            "or drop the event",
        )


def measure_event(
    event: FeedbackEvent, keys: Sequence[bytes], rewards_BK: FloatArray, first: int, noise: FeedbackNoise
) -> list[Measured]:
    """The comparisons that an event without issues leaves: one, or for times of reading one with each other text.

    Two texts are a pair, more of them a ranking, and so is a text alone: with the average text in the last place.

    Args:
        event: What was seen.
        keys: The text_key of each of the request's texts.
        rewards_BK: Their base rewards.
        first: Index of the event's first text among them; the others follow it.
        noise: How far to trust it.
    """
    texts = [first, *sorted(range(first + 1, first + len(event.completions)), key=keys.__getitem__)]
    if event.seconds is not None:
        return _of_times(event, event.seconds, keys, rewards_BK, texts, noise)
    trust = noise.trust(event.source, alone=len(texts) == 1)
    content_key = _content_key(event, [keys[i] for i in texts])
    if len(texts) == 2:
        return [_pair(event, content_key, rewards_BK, texts if event.favours else texts[::-1], trust)]
    others = max(1, len(texts) - 1)
    average = [np.zeros(rewards_BK.shape[1])] if len(texts) == 1 else []
    # Against one of several, every other one is preferred to it: pairs that together count as one answer.
    ranks, weight = ((0, *[1] * others), trust) if event.favours else ((1, *[0] * others), trust / others)
    base_rewards_NK = np.array([*rewards_BK[texts], *average])
    evidence = _evidence(event, content_key, "ranking", base_rewards_NK, weight)
    return [Measured(dataclasses.replace(evidence, ranks=ranks), texts)]


def _of_times(
    event: FeedbackEvent,
    seconds: Sequence[float],
    keys: Sequence[bytes],
    rewards_BK: FloatArray,
    texts: Sequence[int],
    noise: FeedbackNoise,
) -> list[Measured]:
    first, *others = texts
    found = []
    # In the order of the keys, so that the same event sent again in another order has the same ids.
    for number, other in enumerate(others, 1):
        times = seconds[0], seconds[other - first]
        trust = _trust_of_times(*times)
        if trust < _LEAST_TRUST:
            continue
        pair = [first, other] if times[0] > times[1] else [other, first]
        content_key = _content_key(event, [keys[i] for i in pair], trust)
        suffix = f"~{number}" if len(others) > 1 else ""
        found.append(_pair(event, content_key, rewards_BK, pair, noise.trust(event.source) * trust, suffix))
    return found


def _pair(
    event: FeedbackEvent,
    content_key: bytes,
    rewards_BK: FloatArray,
    texts: Sequence[int],
    weight: float,
    suffix: str = "",
) -> Measured:
    preferred, other = texts
    diff_K = rewards_BK[preferred] - rewards_BK[other]
    return Measured(_evidence(event, content_key, "pair", diff_K, weight, suffix), texts)


def _evidence(
    event: FeedbackEvent,
    content_key: bytes,
    kind: EvidenceKind,
    base_rewards: FloatArray,
    weight: float,
    suffix: str = "",
) -> NewEvidence:
    return NewEvidence(
        evidence_id=content_key.hex() if event.id is None else event.id + suffix,
        content_key=content_key,
        kind=kind,
        base_rewards=base_rewards,
        weight=weight,
        source=event.source,
        event_time=event.event_time,
        field=event.field,
    )


def _content_key(event: FeedbackEvent, keys: Sequence[bytes], *numbers: float) -> bytes:
    """Digest of what an event says (32 bytes).

    Its source is part of it: an answer to the same question, or another act on the same texts, is evidence of its own.
    """
    said = "\0".join(["feedback", event.source, "for" if event.favours else "against", *map(float.hex, numbers), ""])
    return hashlib.sha256(said.encode() + b"".join(keys)).digest()


def _trust_of_times(first: float, second: float) -> float:
    return abs(first - second) / (first + second) if first + second > 0.0 else 0.0
