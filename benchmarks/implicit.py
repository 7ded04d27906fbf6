"""What pairs with wrong answers are worth when it is known how often they are wrong.

Implicit feedback is not what somebody said. 30 % of the answers are turned round, or 30 % are the fall of a coin (half
of which turns them round). An answer that is wrong with probability e gets the tilt e / (1 - 2e) and the weight
(1 - 2e)^2: Natarajan et al. (2013), convex and without bias. Its Fisher information near indifference is (1 - 2e)^2 of
a clean answer's, whatever is done with it. The server lets it count 1 - 2e of an answer, which keeps probabilities
calibrated where tastes are strong. Goal: 70 % of the gain of as many clean pairs.

Example: python -m benchmarks implicit
"""

from __future__ import annotations

import numpy as np

from benchmarks.people import Someone, Table, parse, worlds
from service.mrm import GaussianStart, Support
from service.mrm.statements import flip_noise

COUNTS = (10, 20, 50, 100)
FLIPPED, COIN = 0.3, 0.15


def main(argv: list[str]) -> None:
    """Print accuracies by number of pairs, and shares of the clean pairs' gain."""
    arguments = parse(argv, __doc__)
    tables: dict[str, Table] = {}
    for world in worlds(arguments, pairs=100):
        table, rng = tables.setdefault(world.name, Table()), np.random.default_rng(world.seed)
        for someone in world.people:
            wrong_P = rng.random(COUNTS[-1])
            for count in COUNTS:
                for name, accuracy in _accuracies(someone, world.start, count, wrong_P).items():
                    table.add(name, count, world.seed, accuracy)
    for name, table in tables.items():
        table.show(f"{name}: accuracy %")
        shares = Table()
        for count in COUNTS:
            nothing, clean = table.by_seed("nothing told", count), table.by_seed("clean", count)
            for row in list(dict.fromkeys(row for row, _, _ in table.values)):
                if row not in ("nothing told", "clean"):
                    # of means over all seeds: one seed's clean gain may be next to nothing
                    gained = 100 * (table.mean(row, count) - nothing.mean()) / (clean - nothing).mean()
                    shares.add(row, count, 0, gained)
        shares.show(f"{name}: % of the clean pairs' gain", 0)


def _accuracies(someone: Someone, start: GaussianStart, count: int, wrong_P: np.ndarray) -> dict[str, float]:
    told_PK = someone.told_PK[:count]
    # What is left of a clean answer's Fisher information, near indifference.
    information = flip_noise(FLIPPED).weight
    found = {
        "nothing told": someone.accuracy(Support.empty(start.heads), start),
        "clean": someone.accuracy(Support.of(told_PK), start),
        f"clean, {information:.0%} of them": someone.accuracy(Support.of(told_PK[: round(information * count)]), start),
    }
    for name, share in ((f"{FLIPPED:.0%} flipped", FLIPPED), (f"{FLIPPED:.0%} coins", COIN)):
        given_PK = told_PK * np.where(wrong_P[: len(told_PK)] < share, -1.0, 1.0)[:, None]
        weight, tilt = flip_noise(share)
        known = Support.of(given_PK, weights_P=np.full(len(given_PK), weight), tilts_P=np.full(len(given_PK), tilt))
        found[f"{name}, taken as clean"] = someone.accuracy(Support.of(given_PK), start)
        counted = Support.of(given_PK, weights_P=np.full(len(given_PK), 1 - 2 * share))
        found[f"{name}, noise known"] = someone.accuracy(known, start)
        found[f"{name}, as the server counts them"] = someone.accuracy(counted, start)
    return found
