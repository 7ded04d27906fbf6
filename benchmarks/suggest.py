"""How many suggested comparisons are worth twenty that were drawn at random.

Everybody has a pool of comparisons that they could be asked about. At random: the first n of the shuffled pool. One by
one: the most informative one after each answer. At once: n chosen before any answer. Both take each text once before
any twice, where texts come up more than once. Goal: twelve suggested comparisons do what twenty random ones do.

Example: python -m benchmarks suggest
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.people import Someone, Table, parse, worlds
from service.mrm import GaussianStart, Support, solve
from service.mrm.suggest import suggest

ASKED = (5, 8, 10, 12, 20)
RANDOM_DRAWS = 3
POOL = 400


def main(argv: list[str]) -> None:
    """Print accuracies, the difference to twenty random comparisons, and the cost of a suggestion."""
    arguments = parse(argv, __doc__)
    tables = {"simulated": Table(), "Jester": Table()}
    seconds: list[float] = []
    for world in worlds(arguments, POOL):
        table, rng = tables[world.name], np.random.default_rng(world.seed)
        for someone in world.people:
            twenty = 0.0
            for _ in range(RANDOM_DRAWS):
                order = rng.permutation(len(someone.told_PK))
                for count in (0, *ASKED, 50):
                    accuracy = someone.accuracy(Support.of(someone.told_PK[order[:count]]), world.start)
                    table.add("at random", count, world.seed, accuracy)
                    twenty += accuracy / RANDOM_DRAWS if count == 20 else 0.0
            chosen = {
                "suggested one by one": _one_by_one(someone, world.start, rng, seconds),
                "suggested at once": _at_once(someone, world.start, rng),
            }
            for name, rows in chosen.items():
                for count in ASKED:
                    accuracy = someone.accuracy(Support.of(someone.told_PK[rows[:count]]), world.start)
                    table.add(name, count, world.seed, accuracy)
                    table.add(f"{name}, beyond 20 random ones", count, world.seed, accuracy - twenty)
    for name, table in tables.items():
        if table.values:
            table.show(f"{name}: accuracy %")
    print(f"\na suggestion took {1e3 * np.median(seconds):.2f} ms (median)")


def _one_by_one(someone: Someone, start: GaussianStart, rng: np.random.Generator, seconds: list[float]) -> list[int]:
    """Rows of the pool in the order in which they are asked about, each chosen after the answers before it."""
    turned_PK = _turned(someone, rng)
    rows: list[int] = []
    while len(rows) < ASKED[-1]:
        state = solve(Support.of(someone.told_PK[rows]) if rows else Support.empty(start.heads), start)
        started = time.perf_counter()
        found = suggest(turned_PK, state, 1, turned_PK[rows] if rows else None, someone.texts_P2)
        seconds.append(time.perf_counter() - started)
        if not found:
            break
        rows.append(found[0].index)
    return rows


def _at_once(someone: Someone, start: GaussianStart, rng: np.random.Generator) -> list[int]:
    state = solve(Support.empty(start.heads), start)
    found = suggest(_turned(someone, rng), state, ASKED[-1], texts_C2=someone.texts_P2)
    return [one.index for one in found]


def _turned(someone: Someone, rng: np.random.Generator) -> np.ndarray:
    """The pool without its answers: each comparison either way round."""
    return someone.told_PK * rng.choice([-1.0, 1.0], len(someone.told_PK))[:, None]
