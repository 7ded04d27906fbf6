"""Forgetting after a change of taste, and what it costs people who stay as they are.

A switch: somebody else's first 50 comparisons, then n of one's own, evenly in time. "knows when": only the new ones
count, which no history can tell for certain. Goals: within 2 points of that in at most 20 new pairs; a steady taste
loses at most 0.2 points.

Example: python -m benchmarks drift
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.people import Someone, Table, parse, simulated, worlds
from service.datasets.simulated_drift import Drift
from service.mrm import GaussianStart, Support
from service.mrm.drift import assess

BEFORE = 50
NEW = (5, 10, 20, 30, 50)
STEADY = (20, 50, 100)


def main(argv: list[str]) -> None:
    """Print accuracies after a switch, of steady and of slowly changing people, and the cost of an assessment."""
    arguments = parse(argv, __doc__)
    seconds: list[float] = []
    tables: dict[str, Table] = {}
    for world in worlds(arguments, pairs=100):
        switch = tables.setdefault(f"{world.name}: accuracy %, n pairs after a switch", Table())
        steady = tables.setdefault(f"{world.name}: accuracy %, n pairs of a steady taste", Table())
        for someone, other in zip(world.people, world.people[1:] + world.people[:1], strict=True):
            for count in NEW:
                new_PK = someone.told_PK[:count]
                told_PK = np.concatenate([other.told_PK[:BEFORE], new_PK])
                _measure(switch, world.seed, count, told_PK, someone, world.start, seconds)
                switch.add("knows when", count, world.seed, someone.accuracy(Support.of(new_PK), world.start))
            for count in STEADY:
                _measure(steady, world.seed, count, someone.told_PK[:count], someone, world.start, [])
    slow = tables.setdefault("simulated: accuracy %, n pairs while the taste changes evenly", Table())
    for seed in range(arguments.seeds):
        for count in (60, 120):
            world = simulated(seed, arguments.users, count, Drift.SLOW)
            for someone in world.people:
                _measure(slow, seed, count, someone.told_PK, someone, world.start, [])
    for title, table in tables.items():
        table.show(title)
    print(f"\nan assessment of {BEFORE + NEW[-1]} pairs took {1e3 * np.median(seconds):.2f} ms (median)")


def _measure(
    table: Table,
    seed: int,
    count: int,
    told_PK: np.ndarray,
    someone: Someone,
    start: GaussianStart,
    seconds: list[float],
) -> None:
    ages_P = np.arange(len(told_PK))[::-1].astype(float)
    started = time.perf_counter()
    found = assess(Support.of(told_PK), ages_P, start)
    if len(told_PK) == BEFORE + NEW[-1]:
        seconds.append(time.perf_counter() - started)
    half_life = np.ones(len(told_PK)) if found.half_life is None else np.exp2(-ages_P / found.half_life)
    every = someone.accuracy(Support.of(told_PK), start)
    kept = someone.accuracy(Support.of(told_PK, weights_P=found.weights(ages_P)), start)
    faded = someone.accuracy(Support.of(told_PK, weights_P=np.maximum(half_life, 1e-6)), start)
    table.add("everything counts", count, seed, every)
    table.add("half-life chosen by evidence", count, seed, faded)
    table.add("weights by evidence", count, seed, kept)
    table.add("weights by evidence, gain", count, seed, kept - every)
    table.add("assumes a change, % of people", count, seed, 100.0 * (found.half_life is not None))
    table.add("drift score, nats", count, seed, found.score or 0.0)
