"""TRL's RLOOTrainer with an asynchronous reward function, plain texts, and rows without a user."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from datasets import Dataset
from deployment import Server
from metareward_client import Client
from metareward_client.trl import reward_function
from trl import RLOOConfig, RLOOTrainer

from examples.trl_grpo import ASKED, PEOPLE, choices, tiny_policy

STEPS, ROWS = 3, 12


def test_rewards_of_numbered_users_and_of_nobody_are_the_servers(server: Server, tmp_path: Path) -> None:
    policy, tokenizer = tiny_policy()
    with Client(server.url) as client:
        for number, taste in enumerate(list(PEOPLE.values())[:2]):
            client.adapt(str(number), pairs=choices(taste))
    # A column of whole numbers: 0 and 1 have adapted, 2 has not, and some rows are nobody's.
    rows = [
        {"prompt": question, "person": person} for question, person in itertools.product(ASKED[:3], (0, 1, 2, None))
    ]
    seen: list[list[tuple[str, str, int | None]]] = []

    def witness(prompts: list[str], completions: list[str], person: list[int | None], **columns: Any) -> list[float]:
        seen.append(list(zip(prompts, completions, person, strict=True)))
        return [0.0] * len(prompts)

    trainer = RLOOTrainer(
        model=policy,
        processing_class=tokenizer,
        reward_funcs=[reward_function(server.url, user_column="person", name="taste", asynchronous=True), witness],
        train_dataset=Dataset.from_list(rows),
        args=RLOOConfig(
            output_dir=str(tmp_path),
            max_steps=STEPS,
            per_device_train_batch_size=ROWS,
            num_generations=3,
            max_completion_length=12,
            beta=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            bf16=False,
            use_cpu=True,
        ),
    )

    trainer.train()

    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == len(seen) == STEPS
    assert {person for batch in seen for *_, person in batch} == {0, 1, 2, None}
    for log, batch in zip(logs, seen, strict=True):
        people = [person for *_, person in batch]
        rewards = []
        for prompt, completion, person in batch:
            body = {"prompt": prompt, "completions": [completion], "user_id": None if person is None else str(person)}
            rewards += httpx.post(f"{server.url}/score", json=body).raise_for_status().json()["rewards"]
        assert log["rewards/taste/mean"] == pytest.approx(sum(rewards) / ROWS, abs=1e-4)
        assert log["rewards/taste/population_share"] == pytest.approx(people.count(None) / ROWS)
        assert log["rewards/taste/cold_start_share"] == pytest.approx(people.count(2) / ROWS)
        assert math.isfinite(log["loss"])
