"""TRL's GRPOTrainer with personal rewards: through a crash and an overload of the server, and with none at all."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from datasets import Dataset
from deployment import Front, Server, free_port
from metareward_client import Client
from metareward_client.trl import reward_function
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from examples.trl_grpo import ASKED, PEOPLE, choices, tiny_policy

OVERLOADED_S = 20.0
KILLED_AFTER, OVERLOADED_AFTER, STEPS, ROWS = 2, 5, 8, 16


def config(folder: Path, **options: Any) -> GRPOConfig:
    common = {"num_generations": 4, "max_completion_length": 16, "logging_steps": 1, "save_strategy": "no"}
    common |= {"report_to": "none", "bf16": False, "use_cpu": True, "learning_rate": 1e-3}
    return GRPOConfig(output_dir=str(folder), **common | options)


def rows() -> Dataset:
    """One prompt of each question for each person, whom the system message names."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "system", "content": user}, {"role": "user", "content": question}],
                "user_id": user,
            }
            for question, user in itertools.product(ASKED, PEOPLE)
        ]
    )


class Faults(TrainerCallback):
    """Kills the server while it scores a step, and starts it when it was missed; makes its front refuse in another."""

    def __init__(self, server: Server, front: Front) -> None:
        self._server, self._front = server, front
        self.restarted: Future[None] = Future()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == KILLED_AFTER:
            self._front.on_next_request(self._kill)
        if state.global_step == OVERLOADED_AFTER:
            self._front.refuse(OVERLOADED_S)

    def _kill(self) -> None:
        self._server.kill()
        threading.Thread(target=self._restart).start()

    def _restart(self) -> None:
        try:
            assert self._front.failed.wait(120), "nobody asked the dead server"
            self._server.start()
            self.restarted.set_result(None)
        except BaseException as error:
            self.restarted.set_exception(error)


def test_training_outlives_a_server_killed_at_work_and_20_seconds_of_503(tmp_path: Path) -> None:
    policy, tokenizer = tiny_policy()
    with Server(tmp_path) as server, Client(server.url) as client:
        for user, taste in PEOPLE.items():
            client.adapt(user, pairs=choices(taste))
        front = Front(server.port)
        faults = Faults(server, front)
        trainer = GRPOTrainer(
            model=policy,
            processing_class=tokenizer,
            reward_funcs=reward_function(front.url),
            train_dataset=rows(),
            args=config(tmp_path, max_steps=STEPS, per_device_train_batch_size=ROWS, log_completions=True),
            callbacks=[faults],
        )

        trainer.train()

        front.close()
        faults.restarted.result(timeout=1)
        assert len(front.refused_at) >= 2
        steps = [log for log in trainer.state.log_history if "rewards/personal_reward/mean" in log]
        assert len(steps) == STEPS
        assert all(math.isfinite(value) for log in steps for value in log.values())
        assert {log["rewards/personal_reward/none_share"] for log in steps} == {0.0}
        assert steps[OVERLOADED_AFTER]["rewards/personal_reward/seconds"] >= OVERLOADED_S
        # What TRL itself says that it trained on, one file a step.
        used = pd.concat(pd.read_parquet(file) for file in sorted((tmp_path / "completions").glob("*.parquet")))
        assert len(used) == STEPS * ROWS
        assert set(used["personal_reward/user_state"]) == {"adapted"}
        users = [messages[0]["content"] for messages in used["prompt"]]
        assert set(users) == set(PEOPLE)
        items = [
            {"user_id": user, "prompt": list(prompt), "completions": [completion[0]["content"]]}
            for user, prompt, completion in zip(users, used["prompt"], used["completion"], strict=True)
        ]
        answer = httpx.post(f"{server.url}/score", json={"items": items, "truncate": True}, timeout=300)
        rewards = [result["rewards"][0] for result in answer.raise_for_status().json()["results"]]
        assert used["personal_reward"].tolist() == pytest.approx(rewards, abs=1e-4)


def shortness(completions: list[Any], **columns: Any) -> list[float]:
    return [-len(completion[0]["content"]) / 10 for completion in completions]


@pytest.mark.parametrize("others", [[], [shortness]], ids=["alone", "beside another"])
def test_without_a_server_its_rewards_are_left_out_where_the_caller_chose_so(
    others: list[Callable[..., list[float]]], tmp_path: Path
) -> None:
    policy, tokenizer = tiny_policy()
    personal = reward_function(f"http://127.0.0.1:{free_port()}", on_failure="none", timeout=1)
    trainer = GRPOTrainer(
        model=policy,
        processing_class=tokenizer,
        reward_funcs=[personal, *others],
        train_dataset=rows(),
        args=config(tmp_path, max_steps=2, per_device_train_batch_size=8, log_completions=True),
    )

    trainer.train()

    for step, log in enumerate(trainer.state.log_history[:2], start=1):
        used = pd.read_parquet(tmp_path / "completions" / f"completions_{step:05d}.parquet")
        assert used["personal_reward"].isna().all()
        assert log["rewards/personal_reward/none_share"] == 1.0
        if others:
            assert log["reward"] == pytest.approx(used["shortness"].mean(), abs=1e-5)
            assert log["grad_norm"] > 0
        else:
            assert log["reward"] is None
            assert log["loss"] == log["grad_norm"] == 0
