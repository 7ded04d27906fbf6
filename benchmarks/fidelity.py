"""How good a map between heads must be: fidelity beside the accuracy that carried users keep.

A checkpoint of K = 16 is trained on the data, and others to come from: the same people with 8 and 32 heads, four of its
own heads beside twelve random ones, random heads alone, and checkpoints of other data (`--other`). Unseen people say 20
pairs under the one they come from; their stored differences are mapped, and solved on. "measured anew" is the same from
their texts. There is no peer: what is looked for is the fidelity from which on carrying beats starting anew.

Example: python -m benchmarks fidelity --data runs/demo/embedded --other runs/jester-minilm-results/warm_seed0
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.environment import describe
from benchmarks.people import Table
from service.checkpoints import Checkpoint, load_checkpoint
from service.datasets.embedded import EmbeddedDataset
from service.mrm import GaussianStart, Support, solve
from service.mrm.metrics import pair_accuracy
from service.training.link import link
from service.training.methods import unseen_users

SHOTS, USERS = 20, 150
HEADS, SHARED = 16, 4


def main(argv: list[str]) -> None:
    """Print one row for each checkpoint that users come from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="embedded data set, several texts to a prompt")
    parser.add_argument("--split", default="default")
    parser.add_argument("--other", type=Path, nargs="*", default=[], help="checkpoints of other data, same backbone")
    parser.add_argument("--output", type=Path, default=Path("runs/fidelity"), help="trained here where missing")
    arguments = parser.parse_args(argv)
    print(f"{describe()}; {arguments.data}, {USERS} unseen people at most, {SHOTS} pairs each")
    dataset = EmbeddedDataset.open(arguments.data)
    new = _trained(arguments, HEADS)
    table = Table()
    olds = {f"{heads} heads, same data": _trained(arguments, heads) for heads in (8, 32)}
    olds |= {f"other data: {path}": load_checkpoint(path) for path in arguments.other}
    rng = np.random.default_rng(0)
    for number in (1, 2):
        shared_KD = np.concatenate([new.A_KD[:SHARED], _random(rng, new, HEADS - SHARED)])
        olds[f"{SHARED} of its heads, {HEADS - SHARED} random ({number})"] = _of(new, shared_KD)
        for heads in (HEADS, 1):
            olds[f"{heads} random ({number})"] = _of(new, _random(rng, new, heads))
    for name, old in olds.items():
        _compare(dataset, arguments.split, name, old, new, table)
    table.show("from", 3)


def _trained(arguments: argparse.Namespace, heads: int) -> Checkpoint:
    path = arguments.output / f"{arguments.data.resolve().parent.name}-k{heads}"
    if not (path / "manifest.json").exists():
        options = ["--split", arguments.split, "--heads", str(heads), "--output", str(path)]
        command = [sys.executable, "-m", "service", "train", "--data", str(arguments.data), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load_checkpoint(path)


def _random(rng: np.random.Generator, like: Checkpoint, heads: int) -> np.ndarray:
    rows_KD = rng.normal(size=(heads, like.A_KD.shape[1]))
    length = np.linalg.norm(like.A_KD, axis=1).mean()
    return (length * rows_KD / np.linalg.norm(rows_KD, axis=1, keepdims=True)).astype(np.float32)


def _of(like: Checkpoint, A_KD: np.ndarray) -> Checkpoint:
    """A checkpoint of these heads that knows nothing of people."""
    heads = len(A_KD)
    assert isinstance(like.start, GaussianStart)
    precision_KK = np.eye(heads) * like.start.precision_KK.diagonal().mean()
    start = GaussianStart(np.zeros(heads), precision_KK)
    return dataclasses.replace(like, A_KD=A_KD, b_K=np.zeros(heads, np.float32), start=start, golden=None, maps=())


def _compare(dataset: EmbeddedDataset, split: str, name: str, old: Checkpoint, new: Checkpoint, table: Table) -> None:
    found = link(new, old, dataset)
    table.add(name, "fidelity", 0, found.fidelity.mean)
    table.add(name, "of differences", 0, found.differences_fidelity)
    hidden_ND = dataset.gather(np.arange(dataset.texts)).astype(np.float64)
    old_NK, new_NK = (hidden_ND @ each.A_KD.T.astype(np.float64) for each in (old, new))
    for user in unseen_users(dataset, split)[:USERS]:
        asked_QK = new_NK[user.query_chosen_Q] - new_NK[user.query_rejected_Q]
        chosen_P, rejected_P = user.support_chosen_P[:SHOTS], user.support_rejected_P[:SHOTS]
        supports = {
            "carried %": Support.of((old_NK[chosen_P] - old_NK[rejected_P]) @ found.maps.diffs_KK.T),
            "measured anew %": Support.of(new_NK[chosen_P] - new_NK[rejected_P]),
            "nothing known %": Support.empty(new.heads),
        }
        for column, support in supports.items():
            accuracy = pair_accuracy(asked_QK @ solve(support, new.start).weights_K)
            table.add(name, column, 0, 100.0 * accuracy)
