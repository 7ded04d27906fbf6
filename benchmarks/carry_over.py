"""Moving users to another checkpoint on the same backbone: what survives of them without their texts.

The old checkpoint is that of `benchmarks jester`, the new one is trained on the same seen users with another seed and
K. Unseen users adapt under the old one. Then: "from their texts", measured anew, is the goal; "mapped pairs" solves
their stored differences times M; "posterior" is `carry_many`, from the state alone; "weights" is W w. Goal: at most
0.3 points are lost. What is not carried at all starts anew.

Example: python -m benchmarks carry_over --heads 16
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.environment import describe
from benchmarks.people import Table
from service.checkpoints import Checkpoint, load_checkpoint
from service.datasets.embedded import EmbeddedDataset
from service.mrm import GaussianStart, Support, solve
from service.mrm.batch import solve_many
from service.mrm.carry import LinearMaps, carry_many, diffs_fidelity, fidelity, linear_maps, prior_draws
from service.mrm.metrics import pair_accuracy
from service.training.methods import unseen_users

SHOTS = (5, 10, 20, 50)
SPEED_USERS = 20_000


def main(argv: list[str]) -> None:
    """Print accuracies by number of pairs, fidelities and users carried per second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/jester-minilm"))
    parser.add_argument("--results", type=Path, default=Path("runs/jester-minilm-results"), help="Old checkpoints.")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/carry-over"), help="New checkpoints, trained if missing."
    )
    parser.add_argument("--heads", type=int, default=16, help="K of the new checkpoints.")
    parser.add_argument("--kind", choices=("warm", "cold"), default="warm")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--back", action="store_true", help="From the new checkpoints to the old ones.")
    parser.add_argument("--quick", action="store_true", help="Two seeds, a hundred users each.")
    arguments = parser.parse_args(argv)
    print(describe())
    dataset = EmbeddedDataset.open(arguments.data)
    accuracies, kept = Table(), Table()
    for seed in range(2 if arguments.quick else arguments.seeds):
        split = f"{arguments.kind}_seed{seed}"
        old, new = load_checkpoint(arguments.results / split), _trained(arguments, split, seed)
        old, new = (new, old) if arguments.back else (old, new)
        _compare(dataset, split, seed, old, new, 100 if arguments.quick else None, accuracies)
        _fidelities(dataset, split, seed, old, new, kept)
    accuracies.show(f"{split[:4]}, K = {old.heads} to {new.heads}: accuracy %")
    kept.show("fidelity on differences of unseen users' texts", 3)
    _speed()


def _trained(arguments: argparse.Namespace, split: str, seed: int) -> Checkpoint:
    path = arguments.output / f"{split}-k{arguments.heads}"
    if not (path / "manifest.json").exists():
        options = ["--heads", str(arguments.heads), "--seed", str(100 + seed), "--output", str(path)]
        command = [sys.executable, "-m", "service", "train", "--data", str(arguments.data), "--split", split, *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load_checkpoint(path)


def _moment(dataset: EmbeddedDataset, split: str) -> np.ndarray:
    """Second moment [D, D] of differences of the seen users' training pairs."""
    seen = dataset.split(split).seen()
    hidden_ND = dataset.gather(np.arange(dataset.texts)).astype(np.float64)
    diffs_PD = hidden_ND[seen.chosen_P] - hidden_ND[seen.rejected_P]
    return np.asarray(diffs_PD.T @ diffs_PD / len(diffs_PD))


def _maps(dataset: EmbeddedDataset, split: str, old: Checkpoint, new: Checkpoint) -> LinearMaps:
    return linear_maps(new.A_KD, old.A_KD, _moment(dataset, split))


def _compare(
    dataset: EmbeddedDataset,
    split: str,
    seed: int,
    old: Checkpoint,
    new: Checkpoint,
    count: int | None,
    table: Table,
) -> None:
    maps = _maps(dataset, split, old, new)
    hidden_ND = dataset.gather(np.arange(dataset.texts)).astype(np.float64)
    old_NK, new_NK = (hidden_ND @ each.A_KD.T.astype(np.float64) for each in (old, new))
    for user in unseen_users(dataset, split)[:count]:
        asked_QK = new_NK[user.query_chosen_Q] - new_NK[user.query_rejected_Q]
        asked_old_QK = old_NK[user.query_chosen_Q] - old_NK[user.query_rejected_Q]
        for shots in SHOTS:
            chosen_P, rejected_P = user.support_chosen_P[:shots], user.support_rejected_P[:shots]
            told_PK, anew_PK = old_NK[chosen_P] - old_NK[rejected_P], new_NK[chosen_P] - new_NK[rejected_P]
            state = solve(Support.of(told_PK), old.start)
            factors_UF = None if state.factor is None else state.factor[None]
            margins = {
                "old checkpoint": asked_old_QK @ state.weights_K,
                "from their texts": asked_QK @ solve(Support.of(anew_PK), new.start).weights_K,
                "mapped pairs": asked_QK @ solve(Support.of(told_PK @ maps.diffs_KK.T), new.start).weights_K,
                "posterior": asked_QK
                @ carry_many(state.weights_K[None], factors_UF, maps, old.start, new.start).weights_UK[0],
                "weights": asked_QK @ maps.weights_KK @ state.weights_K,
                "nothing carried": asked_QK @ solve(Support.empty(new.heads), new.start).weights_K,
            }
            accuracy = {name: 100.0 * pair_accuracy(margins_Q) for name, margins_Q in margins.items()}
            for name, value in accuracy.items():
                table.add(name, shots, seed, value)
            for name in ("mapped pairs", "posterior", "weights", "nothing carried"):
                table.add(f"{name}, less from their texts", shots, seed, accuracy[name] - accuracy["from their texts"])


def _fidelities(
    dataset: EmbeddedDataset, split: str, seed: int, old: Checkpoint, new: Checkpoint, table: Table
) -> None:
    maps, query = _maps(dataset, split, old, new), dataset.split(split).query()
    diffs_ND = dataset.gather(query.chosen_P).astype(np.float64) - dataset.gather(query.rejected_P)
    for name, measure, start in (("weights", fidelity, old.start), ("mapped pairs", diffs_fidelity, new.start)):
        found = measure(maps, new.A_KD, old.A_KD, diffs_ND, prior_draws(start, 500))
        table.add(name, "mean", seed, found.mean)
        table.add(name, "lowest 5 %", seed, found.low)


def _speed() -> None:
    """Users carried per second of processor time, one thread."""
    rng = np.random.default_rng(0)
    for heads in (8, 16, 32):
        start = GaussianStart(rng.normal(size=heads), np.eye(heads))
        owner_P = np.repeat(np.arange(SPEED_USERS), 10)
        states = solve_many(rng.normal(size=(len(owner_P), heads)), owner_P, SPEED_USERS, start)
        maps = linear_maps(rng.normal(size=(heads, 64)), rng.normal(size=(heads, 64)), np.eye(64))
        seconds = []
        for _ in range(5):
            started = time.process_time()
            carry_many(states.weights_UK, states.factors_UF, maps, start, start)
            seconds.append(time.process_time() - started)
        print(f"\ncarry_many, K = {heads}: {SPEED_USERS / min(seconds):,.0f} users/s of one processor")
