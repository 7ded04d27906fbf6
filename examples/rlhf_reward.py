"""A user's reward for RLHF training: a reward function as TRL's GRPOTrainer and RLOOTrainer call it.

    trainer = GRPOTrainer(model, reward_funcs=personal_reward, train_dataset=dataset, ...)

`dataset` has a column `user_id` beside `prompt`. Rewards are log-odds: their differences between completions of one
prompt count, which is what a group's mean leaves. A server that is busy is asked again. Needs httpx; METAREWARD_URL and
METAREWARD_API_KEY name the server and a key of the role `score`.
"""

from __future__ import annotations

import os
import time
from typing import Any

import httpx

_TRIES = 20
_KEY = os.environ.get("METAREWARD_API_KEY")
_SERVER = httpx.Client(
    base_url=os.environ.get("METAREWARD_URL", "http://127.0.0.1:8000"),
    headers={"Authorization": f"Bearer {_KEY}"} if _KEY else {},
    timeout=120,
)


def personal_reward(prompts: list[Any], completions: list[Any], user_id: list[str], **_columns: Any) -> list[float]:
    """The reward of each completion for the user of its row; texts and chat messages are taken alike."""
    texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
    # What follows one another with one user and prompt is one item: a prompt is computed once.
    items: list[dict[str, Any]] = []
    for user, prompt, text in zip(user_id, prompts, texts, strict=True):
        if not items or (items[-1]["user_id"], items[-1]["prompt"]) != (user, prompt):
            items.append({"user_id": user, "prompt": prompt, "completions": []})
        items[-1]["completions"].append(text)
    for _ in range(_TRIES):
        response = _SERVER.post("/score", json={"items": items, "truncate": True})
        if response.status_code not in (429, 503):
            break
        time.sleep(float(response.headers["Retry-After"]))
    answer = response.raise_for_status().json()
    return [reward for result in answer["results"] for reward in result["rewards"]]
