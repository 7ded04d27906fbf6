"""The reward function for TRL, called as its trainers do, against a server."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from metareward_client import Client
from metareward_client.trl import reward_function


def test_each_row_gets_its_users_reward(api: httpx.Client, fresh_user: str) -> None:
    url = str(api.base_url)
    with Client(url) as client:
        pair = {"prompt": "Why is the sky blue?", "chosen": "Scattering.", "rejected": "What a lovely question, dear!"}
        client.adapt(fresh_user, pairs=[pair])
    chat = [{"role": "user", "content": "Name a tree."}]
    rows = [(fresh_user, "Oak."), (fresh_user, "So many!"), ("unheard-of", "Oak."), (None, "Oak."), (fresh_user, "")]
    users, said = [user for user, _ in rows], [text for _, text in rows]
    states: dict[str, list[str]] = {}

    texts = reward_function(url)(["Name a tree."] * 5, said, user_id=users, log_extra=states.__setitem__)
    asynchronous = reward_function(url, asynchronous=True)
    messages = asyncio.run(
        asynchronous([chat] * 5, [[{"role": "assistant", "content": t}] for t in said], user_id=users)
    )

    expected = [
        api.post("/score", json={"user_id": user, "prompt": "Name a tree.", "completions": [text]}).json()["rewards"][0]
        for user, text in rows
    ]
    assert texts == pytest.approx(expected, abs=1e-5)
    assert messages == pytest.approx(expected, abs=1e-5)
    assert texts[0] != texts[2] == texts[3]
    assert states["personal_reward/user_state"] == ["adapted", "adapted", "cold_start", "population", "adapted"]
