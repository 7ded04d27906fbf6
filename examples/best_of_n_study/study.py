"""One study: people, answers and a checkpoint; what everybody gets by every way of choosing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from metareward_client import Client
from numpy.typing import NDArray

from best_of_n_study import asking
from best_of_n_study.gains import Gain, captured, gain, got
from best_of_n_study.limits import eyes_open, heads_known
from best_of_n_study.people import Answers, People, draw_people, features

Array = NDArray[np.float64]

TOLD = 10
"""Pairs that the table is about."""

BEST, RANDOM = "best of all (oracle)", "random answer"
"""Between them lies what best-of-n can be worth."""

_OTHERS = 1000


@dataclass(frozen=True)
class World:
    """Answers of one writer, parted.

    Attributes:
        told_about: Answers that people's pairs are of.
        judged: Answers to other prompts, as many to each: people get the best of them.
    """

    told_about: Answers
    judged: Answers


@dataclass
class Study:
    """What people got.

    Attributes:
        name: Names it.
        agree: Share of the choices that the true tastes predict.
        ways: By way of choosing, what everybody got: float64 [U, P], log-odds.
        curves: By who chose the questions, by number of pairs: the gain over the population's reward.
        seen: Gains over the population's reward where more is known than a server knows.
    """

    name: str
    agree: float
    ways: dict[str, Array]
    curves: dict[str, dict[int, Gain]] = field(default_factory=dict)
    seen: dict[str, Gain] = field(default_factory=dict)

    @property
    def after_ten(self) -> Gain:
        """Gain of the own reward after ten pairs by chance over the population's."""
        return self.curves["by chance"][TOLD]

    @property
    def limit(self) -> float:
        """Gain of the best answers over the population's reward."""
        return gain(self.ways[BEST], self.ways["population's reward"]).mean


def run(client: Client, world: World, people: People, name: str) -> Study:
    """Let people adapt on a server and see what they get.

    Args:
        client: The server.
        world: The answers.
        people: Who adapt; the server must not know them.
        name: Of the study.
    """
    judged = world.judged
    told_PNK, judged_PNK = (asking.base_rewards(client, each) for each in (world.told_about, judged))
    utilities_UPN = people.utilities(judged)
    population_UP = got(utilities_UPN, asking.rewards(client, judged))
    study = Study(
        name,
        agreement(people, world.told_about),
        {
            "first answer": utilities_UPN[:, :, 0],
            RANDOM: utilities_UPN.mean(axis=2),
            "population's reward": population_UP,
        },
    )
    for title, suggested in (("by chance", False), ("suggested", True)):
        own = asking.own_rewards(
            client, people, world.told_about, judged, suggested=suggested, prefix=f"study-{title[0]}"
        )
        got_by_pairs = {pairs: got(utilities_UPN, reward_UPN) for pairs, reward_UPN in own.items()}
        study.curves[title] = {pairs: gain(own_UP, population_UP) for pairs, own_UP in got_by_pairs.items()}
        study.ways[f"own reward, {TOLD} pairs {title}"] = got_by_pairs[TOLD]
    study.ways[BEST] = utilities_UPN.max(axis=2)

    others = draw_people(_OTHERS, people.seed + 1_000_000, world.told_about)
    own_UPN, mean_PN = eyes_open(people, others, world.told_about, judged, TOLD)
    mean_UP = got(utilities_UPN, mean_PN)
    study.ways["population's true taste"] = mean_UP
    study.seen[f"{TOLD} pairs, features seen whole, over the population's true taste"] = gain(
        got(utilities_UPN, own_UPN), mean_UP
    )
    known_UPN = heads_known(told_PNK, people.utilities(world.told_about), judged_PNK)
    known_UP = got(utilities_UPN, known_UPN)
    study.ways["own taste told whole, through the heads"] = known_UP
    study.seen["taste told whole, through the heads, over the population's reward"] = gain(known_UP, population_UP)
    return study


def agreement(people: People, answers: Answers) -> float:
    """Share of people's choices that their true tastes predict, over every two answers to a prompt."""
    shares = []
    for texts in answers.values():
        utilities_UN = np.array([features(text) for text in texts]) @ people.taste_UF.T
        first, second = np.triu_indices(len(texts), 1)
        size = np.abs(utilities_UN[first] - utilities_UN[second])
        shares.append(float((1 / (1 + np.exp(-size))).mean()))
    return float(np.mean(shares))


def table(study: Study) -> str:
    """The study as Markdown."""
    random_UP, oracle_UP = study.ways[RANDOM], study.ways[BEST]
    population_UP = study.ways["population's reward"]
    people, prompts = population_UP.shape
    lines = [
        f"\n## {study.name}",
        f"{people} people, {prompts} prompts; true tastes predict {100 * study.agree:.1f} % of the choices.\n",
        "| chosen by | true utility, log-odds | of the best's worth | over the population's reward | get more |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way, way_UP in study.ways.items():
        mean_U = way_UP.mean(axis=1)
        over = "" if way == "population's reward" else _gain_cells(gain(way_UP, population_UP))
        lines.append(
            f"| {way} | {mean_U.mean():+.2f} ± {mean_U.std(ddof=1) / np.sqrt(people):.2f} "
            f"| {100 * captured(way_UP, random_UP, oracle_UP):.0f} % | {over or '|'} |"
        )
    lines += ["\n| pairs | " + " | ".join(str(pairs) for pairs in asking.PAIRS) + " |", "| --- " * 6 + "|"]
    for title, curve in study.curves.items():
        lines.append(
            f"| gain, questions {title} | "
            + " | ".join(f"{g.mean:+.2f} ± {g.error:.2f}" for g in curve.values())
            + " |"
        )
        lines.append("| people who get more | " + " | ".join(f"{100 * g.share:.0f} %" for g in curve.values()) + " |")
    ten = study.after_ten
    lines += [
        f"\nAfter {TOLD} pairs by chance: gain {ten.mean:+.2f} ± {ten.error:.2f} over people "
        f"(± {ten.prompts_error:.2f} over prompts); {100 * ten.share:.0f} ± {100 * ten.share_error:.0f} % get more; "
        f"told from none: {100 * ten.surely_more:.0f} % more, {100 * ten.surely_less:.0f} % less."
    ]
    lines += [
        f"{name}: {100 * each.share:.0f} % get more, gain {each.mean:+.2f} ± {each.error:.2f}"
        for name, each in study.seen.items()
    ]
    return "\n".join(lines)


def _gain_cells(over: Gain) -> str:
    return f"{over.mean:+.2f} ± {over.error:.2f} | {100 * over.share:.0f} %"


def as_json(study: Study) -> dict[str, Any]:
    """Every person's numbers, for those who want to draw or test otherwise."""
    return {
        "got": {way: np.round(way_UP.mean(axis=1), 4).tolist() for way, way_UP in study.ways.items()},
        "gain": {
            title: {str(pairs): np.round(each.gain_U, 4).tolist() for pairs, each in curve.items()}
            for title, curve in study.curves.items()
        },
    }
