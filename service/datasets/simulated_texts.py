"""Prompts and answers in many styles, from topics and phrase banks.

A style sets six knobs; the writer turns the same points of a topic into an answer of that style. What the person then
judges is measured on the text (`surface_features`), not read from the knobs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

import numpy as np

from service.datasets.simulated_phrases import CONTRACTIONS, Kind, PhraseBank, Register


@dataclass(frozen=True)
class Topic:
    """Something to ask about.

    Attributes:
        name: A noun phrase that fits into a question.
        kind: How its points are written: imperatives or clauses.
        points: What there is to say.
        examples: Clauses.
    """

    name: str
    kind: Kind
    points: tuple[str, ...]
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Style:
    """How an answer is written.

    Attributes:
        length: 0 (a line) to 3 (every point, elaborated).
        lists: Whether points stand in a list.
        register: Casual, neutral or formal.
        register_share: Share of the sentences that show the register.
        hedging: Share of the points that are hedged.
        warmth: 0 (none) to 3 (opening, closing and asides).
        examples: 0 to 2 examples.
    """

    length: int
    lists: bool
    register: Register
    register_share: float
    hedging: float
    warmth: int
    examples: int


def parse_topics(source: str) -> tuple[Topic, ...]:
    """Read the topic format of `simulated_topics`."""
    topics: list[Topic] = []
    kind: Kind = "how-to"
    for block in re.split(r"^(?=[#=])", source.strip(), flags=re.MULTILINE):
        lines = block.strip().splitlines()
        if block.startswith("#"):
            kind = cast(Kind, lines[0].split()[-1])
        elif block.startswith("="):
            points, examples = " ".join(lines[1:]).split("e.g. ")
            topics.append(
                Topic(
                    name=lines[0].removeprefix("= "),
                    kind=kind,
                    points=tuple(point.strip() for point in points.split(";") if point.strip()),
                    examples=tuple(example.strip() for example in examples.split(";")),
                )
            )
    return tuple(topics)


def draw_style(rng: np.random.Generator) -> Style:
    """A style with every knob set independently of the others."""
    registers: tuple[Register, ...] = ("casual", "neutral", "formal")
    return Style(
        length=int(rng.integers(4)),
        lists=bool(rng.random() < 0.4),
        register=registers[rng.integers(3)],
        register_share=(0.6, 1.0)[rng.integers(2)],
        hedging=(0.0, 0.0, 0.5, 1.0)[rng.integers(4)],
        warmth=int(rng.integers(4)),
        examples=int(rng.integers(3)),
    )


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def _in_register(text: str, register: Register, bank: PhraseBank) -> str:
    replacements = bank.substitutions[register] | (CONTRACTIONS if register == "casual" else {})
    for plain, marked in replacements.items():
        text = re.sub(rf"\b{plain}\b", marked, text)
        text = re.sub(rf"\b{_sentence_case(plain)}\b", _sentence_case(marked), text)
    return text


class _Answer:
    """Writes one answer; the random draws happen in reading order."""

    def __init__(self, topic: Topic, style: Style, bank: PhraseBank, rng: np.random.Generator) -> None:
        self.topic, self.style, self.bank, self.rng = topic, style, bank, rng
        self._used: set[str] = set()

    def _pick(self, options: tuple[str, ...]) -> str:
        """One of `options`, one that this answer has not used while there is one."""
        fresh = tuple(option for option in options if option not in self._used) or options
        picked = fresh[self.rng.integers(len(fresh))]
        self._used.add(picked)
        return picked

    def _registered(self) -> Register:
        return self.style.register if self.rng.random() < self.style.register_share else "neutral"

    def _prefixed(self, sentence: str, register: Register) -> str:
        """The sentence behind an opening word of the register, unless it begins with one already."""
        openings = {prefix.split(maxsplit=1)[0].strip(",") for prefix in self.bank.prefixes[register]}
        if sentence.split(maxsplit=1)[0].strip(",") in openings:
            return sentence
        return self._pick(self.bank.prefixes[register]) + sentence[:1].lower() + sentence[1:]

    def point(self, point: str) -> str:
        kind = self.topic.kind
        register = self._registered()
        if self.rng.random() < self.style.hedging:
            if self.rng.random() < 0.7:
                frame = self._pick(self.bank.hedged[kind])
                prefix = self._pick(self.bank.prefixes[register])
                if prefix and not frame.startswith("I "):
                    frame = frame[:1].lower() + frame[1:]
            else:
                frame = self._pick(self.bank.frames[kind][register])
                frame, prefix = frame[:-1] + self._pick(self.bank.hedge_tails) + ".", ""
            frame = prefix + frame
        else:
            frame = self._pick(self.bank.frames[kind][register])
            if register != "neutral" and self.rng.random() < 0.5:
                frame = self._prefixed(frame, register)
        capital = _sentence_case(point)
        text = frame.format(p=point, P=capital, c=point, C=capital)
        return _in_register(_sentence_case(text), register, self.bank)

    def _aside(self, options: tuple[str, ...]) -> str:
        text = self._pick(options).format(t=self.topic.name)
        return _in_register(text, "casual" if self._registered() == "casual" else "neutral", self.bank)

    def elaborated(self, point: str) -> str:
        sentences = [self.point(point)]
        if self.style.length == 3:
            reason = self._pick(self.bank.reasons[self.topic.kind]).format(t=self.topic.name)
            register = self._registered()
            if self.rng.random() < self.style.hedging / 2:
                reason = reason[:-1] + self._pick(self.bank.hedge_tails) + "."
            elif register != "neutral":
                reason = self._prefixed(reason, register)
            sentences.append(_in_register(_sentence_case(reason), register, self.bank))
            if self.style.warmth == 3 and self.rng.random() < 0.4:
                sentences.append(self._aside(self.bank.asides))
        return " ".join(sentences)

    def write(self) -> str:
        style, topic, rng = self.style, self.topic, self.rng
        wanted = (1, 2, 4, 5)[style.length] + (1 if style.lists and style.length < 2 else 0)
        wanted = min(wanted, len(topic.points))
        chosen = np.sort(rng.permutation(len(topic.points))[:wanted])
        points = [self.elaborated(topic.points[index]) for index in chosen]
        head = [self._aside(self.bank.openings)] if style.warmth >= 1 else []
        if style.warmth == 3 and style.length >= 2:
            head.append(self._aside(self.bank.asides))
        tail = []
        if style.examples == 2:
            tail.append(self._pick(self.bank.example_leads).format(t=topic.name))
        for example in rng.permutation(len(topic.examples))[: style.examples].tolist():
            text = self._pick(self.bank.examples).format(e=topic.examples[example])
            tail.append(_in_register(text, self._registered(), self.bank))
        if style.warmth >= 2:
            tail.append(self._aside(self.bank.closings))
        if not style.lists:
            return " ".join([*head, *points, *tail])
        bullet = self._pick(self.bank.bullets)
        lines = [" ".join([*head, self._pick(self.bank.list_openings)])]
        lines += [bullet.format(n=number) + point for number, point in enumerate(points, 1)]
        return "\n".join([*lines, *([" ".join(tail)] if tail else [])])


def write_answer(topic: Topic, style: Style, bank: PhraseBank, rng: np.random.Generator) -> str:
    """An answer about `topic` in `style`, in the words of `bank`."""
    return _Answer(topic, style, bank, rng).write()
