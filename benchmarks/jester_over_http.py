"""Real people over HTTP: adapt unseen users with real preferences, rank their query texts, compare with offline.

Offline and server must give the same verdict on every pair whose margin exceeds 1e-5; pairs below are counted. With
--ratings the same people also rate the texts of their pairs one by one, and the two are compared as the server scores.

Example: python -m benchmarks jester_over_http --texts ../shared/data/jester --data runs/jester-smollm2 \
             --split warm_seed0 --checkpoint runs/jester-smollm2-warm0 --users 200 --shots 20
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.environment import describe
from benchmarks.server import ServerProcess
from service.checkpoints import load_checkpoint
from service.datasets.embedded import EmbeddedDataset
from service.mrm import Support, solve
from service.mrm.metrics import pair_accuracy

DECIDED = 1e-5


def main(argv: list[str]) -> None:
    """Run the comparison and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="folder with responses.jsonl")
    parser.add_argument("--data", type=Path, required=True, help="embedded data set of the same texts")
    parser.add_argument("--split", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True, help="trained on that split's seen users")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--shots", type=int, default=20)
    parser.add_argument("--graded", action="store_true", help="Send how strongly each choice was felt.")
    parser.add_argument("--ratings", action="store_true", help="Beside the pairs, send ratings of the same texts.")
    arguments = parser.parse_args(argv)

    rows = [json.loads(line) for line in (arguments.texts / "responses.jsonl").read_text().splitlines()]
    dataset = EmbeddedDataset.open(arguments.data)
    if len(rows) != dataset.texts:
        parser.error("the texts and the data set differ in number")
    checkpoint = load_checkpoint(arguments.checkpoint)
    hidden_ND = dataset.gather(np.arange(dataset.texts)).astype(np.float64)
    phi_NK = hidden_ND @ checkpoint.A_KD.T.astype(np.float64) + checkpoint.b_K
    split = dataset.split(arguments.split)
    support, query = split.support(), split.query()
    users = np.intersect1d(support.user_P, query.user_P)[: arguments.users]
    if dataset.text_prompt_N.max() > 0:
        parser.error("the texts have several prompts; this comparison scores a user's texts under one")
    start = solve(Support.empty(checkpoint.heads), checkpoint.start)

    given = dataset.ratings()
    rating_UN = np.full((len(dataset.users), dataset.texts), np.nan)
    if given is not None:
        rating_UN[given.user_R, given.text_R] = given.rating_R
    elif arguments.ratings:
        parser.error("the data set has no ratings: embed it with --format ratings")

    verdicts = {"pairs": Verdicts()} | ({"ratings": Verdicts()} if arguments.ratings else {})
    plain: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(Path(folder), CHECKPOINT=str(arguments.checkpoint.resolve())) as server,
        server.client() as client,
    ):
        for user in users:
            mine = np.flatnonzero(support.user_P == user)[: arguments.shots]
            asked = np.flatnonzero(query.user_P == user)
            chosen, rejected = support.chosen_P[mine], support.rejected_P[mine]
            strengths = support.strength_P[mine].astype(float).tolist() if arguments.graded else [None] * len(mine)
            said = {
                "pairs": (
                    Support.of(phi_NK[chosen] - phi_NK[rejected], [np.nan if s is None else s for s in strengths]),
                    [
                        {
                            "prompt": rows[c]["prompt"],
                            "chosen": rows[c]["response"],
                            "rejected": rows[r]["response"],
                            "strength": strength,
                        }
                        for c, r, strength in zip(chosen, rejected, strengths, strict=True)
                    ],
                )
            }
            if arguments.ratings:
                texts = np.unique(np.concatenate([chosen, rejected]))
                ratings = rating_UN[user, texts].tolist()
                said["ratings"] = (
                    Support.of(np.zeros((0, checkpoint.heads)), rated_RK=phi_NK[texts], ratings_R=ratings),
                    [
                        {"prompt": rows[text]["prompt"], "completion": rows[text]["response"], "rating": rating}
                        for text, rating in zip(texts, ratings, strict=True)
                    ],
                )
            asked_QK = phi_NK[query.chosen_P[asked]] - phi_NK[query.rejected_P[asked]]
            plain.append(pair_accuracy(asked_QK @ start.weights_K))
            for kind, (evidence, items) in said.items():
                name = f"jester-{kind}-{user}"
                client.post(f"/users/{name}/adapt", json={kind: items}).raise_for_status()
                texts = np.unique(np.concatenate([query.chosen_P[asked], query.rejected_P[asked]]))
                answer = client.post(
                    "/score",
                    json={
                        "user_id": name,
                        "prompt": rows[texts[0]]["prompt"],
                        "completions": [rows[text]["response"] for text in texts],
                    },
                )
                answer.raise_for_status()
                reward_N = np.zeros(dataset.texts)
                reward_N[texts] = answer.json()["rewards"]
                verdicts[kind].add(
                    asked_QK @ solve(evidence, checkpoint.start).weights_K,
                    reward_N[query.chosen_P[asked]] - reward_N[query.rejected_P[asked]],
                )

    print(describe())
    print(
        f"{arguments.split}, {checkpoint.backbone.id}, {len(plain)} unseen users, {arguments.shots} pairs each"
        + (", with strengths" if arguments.graded else "")
    )
    print(f"accuracy without personalisation  {100 * np.mean(plain):6.2f} %")
    for kind, found in verdicts.items():
        print(f"{kind}: accuracy of the recipe, offline {100 * np.mean(found.offline):6.2f} %")
        print(f"{kind}: accuracy as the server returned {100 * np.mean(found.served):6.2f} %")
        print(f"query pairs {found.pairs}; margin below {DECIDED:g}: {found.undecided}; other: {found.differing}")
        print(f"largest difference of a margin {found.largest:.2e}")
    if arguments.ratings:
        gain_U = 100 * (np.array(verdicts["ratings"].served) - np.array(verdicts["pairs"].served))
        print(f"ratings less pairs {gain_U.mean():+.2f} ± {gain_U.std(ddof=1) / np.sqrt(len(gain_U)):.2f} points")
    if any(found.differing for found in verdicts.values()):
        raise SystemExit("the server does not give the offline verdicts")


@dataclass
class Verdicts:
    """Accuracies by user of one kind of evidence, and how far server and recipe are apart."""

    offline: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    pairs: int = 0
    undecided: int = 0
    differing: int = 0
    largest: float = 0.0

    def add(self, offline_Q: np.ndarray, served_Q: np.ndarray) -> None:
        """Margins of one user's queries."""
        decided_Q = np.abs(offline_Q) > DECIDED
        self.differing += int((np.sign(offline_Q) != np.sign(served_Q))[decided_Q].sum())
        self.undecided += int((~decided_Q).sum())
        self.pairs += len(offline_Q)
        self.largest = max(self.largest, float(np.abs(offline_Q - served_Q).max()))
        self.offline.append(pair_accuracy(offline_Q))
        self.served.append(pair_accuracy(served_Q))
