"""People for the benchmarks of what a posterior is good for: simulated ones with known tastes, and Jester's real ones.

Simulated people are adapted in the space of their true features, from the tastes of other people as the prior: what
is measured is the mathematics, not an encoder. Jester's are adapted with a checkpoint trained on the split's seen
users.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.environment import describe
from service.checkpoints import load_checkpoint
from service.datasets.embedded import EmbeddedDataset
from service.datasets.simulated import Sizes, simulate
from service.datasets.simulated_choices import Behaviour
from service.datasets.simulated_drift import Drift
from service.mrm import GaussianStart, Support, solve
from service.mrm.metrics import pair_accuracy
from service.training.methods import unseen_users

DIFFERENT = 1.0
"""Jester's pairs are of texts whose ratings differ by more than that."""


@dataclass(frozen=True)
class Someone:
    """A person: differences of base rewards, chosen minus rejected.

    Attributes:
        told_PK: What there is to tell, in order.
        asked_QK: What is predicted.
        texts_P2: Numbers of the texts of `told_PK`, where texts come up more than once.
    """

    told_PK: np.ndarray
    asked_QK: np.ndarray
    texts_P2: np.ndarray | None = None

    def accuracy(self, support: Support, start: GaussianStart) -> float:
        """Share of the queries that are predicted after some evidence, in %."""
        return 100.0 * pair_accuracy(self.asked_QK @ solve(support, start).weights_K)


@dataclass(frozen=True)
class World:
    """People who were not trained on, and the start that is theirs."""

    name: str
    seed: int
    start: GaussianStart
    people: list[Someone]


@dataclass
class Table:
    """Means over people, then over seeds, with the standard error over seeds."""

    values: dict[tuple[str, str, int], list[float]] = field(default_factory=dict)

    def add(self, row: str, column: object, seed: int, value: float) -> None:
        """One person's value."""
        self.values.setdefault((row, str(column), seed), []).append(value)

    def by_seed(self, row: str, column: object) -> np.ndarray:
        """Means over people, one for each seed."""
        seeds = sorted({seed for name, at, seed in self.values if (name, at) == (row, str(column))})
        return np.array([np.mean(self.values[row, str(column), seed]) for seed in seeds])

    def mean(self, row: str, column: object) -> float:
        """The number in the table."""
        return float(self.by_seed(row, column).mean())

    def show(self, title: str, digits: int = 2) -> None:
        """Print it as Markdown."""
        rows = list(dict.fromkeys(row for row, _, _ in self.values))
        columns = list(dict.fromkeys(column for _, column, _ in self.values))
        print(f"\n| {title} | " + " | ".join(columns) + " |\n" + "| --- " * (1 + len(columns)) + "|")
        for row in rows:
            cells = [self._cell(row, column, digits) for column in columns]
            print(f"| {row} | " + " | ".join(cells) + " |", flush=True)

    def _cell(self, row: str, column: str, digits: int) -> str:
        values = self.by_seed(row, column)
        if not len(values):
            return ""
        error = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
        return f"{values.mean():.{digits}f}{error}"


def parse(argv: list[str], doc: str | None) -> argparse.Namespace:
    """Options that all of them have; tells where the measurement is made."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/jester-minilm"), help="Jester, embedded.")
    parser.add_argument("--results", type=Path, default=Path("runs/jester-minilm-results"), help="Its checkpoints.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--users", type=int, default=60, help="People of each kind, for each seed.")
    parser.add_argument("--quick", action="store_true", help="Two seeds, twenty people.")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.seeds, arguments.users = 2, 20
    print(f"{describe()}; {arguments.seeds} seeds of {arguments.users} people, ± is the standard error over seeds")
    return arguments


def worlds(arguments: argparse.Namespace, pairs: int) -> Iterator[World]:
    """The simulated worlds of all seeds, then the real ones if they are at hand."""
    for seed in range(arguments.seeds):
        yield simulated(seed, arguments.users, pairs)
    if not arguments.data.exists() or not arguments.results.exists():
        print(f"{arguments.data} or {arguments.results} is missing: simulated people only (see benchmarks jester)")
        return
    for seed in range(arguments.seeds):
        yield jester(arguments.data, arguments.results, seed, arguments.users)


def simulated(seed: int, users: int, pairs: int, drift: Drift = Drift.NONE) -> World:
    """`users` unseen people with `pairs` support pairs each; the tastes of as many others are the prior."""
    sizes = Sizes(
        users=2 * users, unseen_share=0.5, pairs=2, support_pairs=pairs, query_pairs=60, prompts=96, new_prompts=48
    )
    people = simulate(seed, sizes, Behaviour(drift=drift))
    tastes_UF = np.stack([person.taste for person in people.people if person.id.startswith("seen")])
    covariance_FF = np.cov(tastes_UF.T) + 1e-3 * np.eye(tastes_UF.shape[1])
    rows: dict[tuple[str, str], list[int]] = {}
    for row, pair in enumerate(people.pairs):
        rows.setdefault((pair.user_id, pair.part), []).append(row)
    return World(
        "simulated",
        seed,
        GaussianStart(tastes_UF.mean(axis=0), np.linalg.inv(covariance_FF)),
        [
            Someone(people.differences[rows[person.id, "support"]], people.differences[rows[person.id, "query"]])
            for person in people.people
            if person.id.startswith("unseen")
        ],
    )


def jester(data: Path, results: Path, seed: int, users: int) -> World:
    """The first `users` unseen people of a warm split; they tell all pairs of texts outside their queries, shuffled."""
    dataset, split = EmbeddedDataset.open(data), f"warm_seed{seed}"
    checkpoint = load_checkpoint(results / split)
    if not isinstance(checkpoint.start, GaussianStart):
        raise SystemExit(f"{results / split}: a checkpoint of the map recipe is needed")
    hidden_ND = dataset.gather(np.arange(dataset.texts)).astype(np.float64)
    phi_NK = hidden_ND @ checkpoint.A_KD.T.astype(np.float64) + checkpoint.b_K
    given = dataset.ratings()
    if given is None:
        raise SystemExit(f"{data} has no ratings: embed it with --format ratings")
    rating_UN = np.full((len(dataset.users), dataset.texts), np.nan)
    rating_UN[given.user_R, given.text_R] = given.rating_R
    rng = np.random.default_rng(seed)
    people = []
    for user in unseen_users(dataset, split)[:users]:
        own_N = rating_UN[user.user].copy()
        own_N[np.concatenate([user.query_chosen_Q, user.query_rejected_Q])] = np.nan
        better, worse = np.nonzero(own_N[:, None] - own_N[None, :] > DIFFERENT)
        order = rng.permutation(len(better))
        texts_P2 = np.stack([better, worse], axis=1)[order]
        told_PK = phi_NK[texts_P2[:, 0]] - phi_NK[texts_P2[:, 1]]
        people.append(Someone(told_PK, phi_NK[user.query_chosen_Q] - phi_NK[user.query_rejected_Q], texts_P2))
    return World("Jester", seed, checkpoint.start, people)
