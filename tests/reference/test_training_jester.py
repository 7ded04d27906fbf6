"""The recipe on real people: it must help on the same embeddings as the baseline, and do so quickly."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from people import GOLDEN_ID

from service.datasets.embedded import BackboneInfo, EmbeddedDataset, PairTable, write_embedded_dataset
from service.training.empirical_bayes import fit_tuned_bradley_terry, train_empirical_bayes
from service.training.evaluation import evaluate_checkpoint
from service.training.seen import is_cold, seen_data

PART, SEEN = 1, 250


@pytest.fixture(scope="module")
def jester(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddedDataset:
    path = tmp_path_factory.mktemp("jester") / "data"
    with np.load(shared / "data" / "jester" / "jester.npz") as arrays:
        hidden_ND = arrays["smollm2_last_D"]
        warm, cold = (arrays[f"{name}_seed0"] for name in ("warm", "cold"))
    # Half of those who are seen teach enough, in half the time.
    seen = np.unique(warm[warm[:, PART] == 0, 0])
    warm = warm[~np.isin(warm[:, 0], seen[SEEN:])]
    splits = {"warm": PairTable.of(*warm.T), "cold": PairTable.of(*cold.T)}
    spec = {"id": "smollm2", "fingerprint": "f" * 64, "template_id": "t" * 64, "hidden_size": hidden_ND.shape[1]}
    write_embedded_dataset(
        path,
        backbone=BackboneInfo.from_spec(spec),
        h_ND=hidden_ND,
        text_prompt_N=np.zeros(len(hidden_ND)),
        users=[f"u{user:04d}" for user in range(2500)],
        splits=splits,
        golden_GD=hidden_ND[:2],
        golden_texts_id=GOLDEN_ID,
    )
    return EmbeddedDataset.open(path)


def test_twenty_choices_help_unseen_people(jester: EmbeddedDataset, tmp_path: Path) -> None:
    assert (is_cold(jester, "warm"), is_cold(jester, "cold")) == (False, True)
    started = time.process_time()
    checkpoint, _ = train_empirical_bayes(jester, "warm", heads=8, seed=0, cache=tmp_path)
    baseline = fit_tuned_bradley_terry(seen_data(jester, "warm"), seed=0, cold=False, cache=tmp_path)
    result = evaluate_checkpoint(jester, "warm", checkpoint, (0, 20), baseline).as_json()
    seconds = time.process_time() - started
    assert result["users"] == 499
    assert result["by_shots"][1]["gain"] >= 0.005
    assert result["by_shots"][1]["log_loss"] < result["baseline"]["log_loss"]
    assert result["by_shots"][1]["calibration_error"] < result["by_shots"][1]["calibration_error_if_perfect"] + 0.01
    assert seconds < 120, "processor time of fit and evaluation; about a third of it is usual"
