"""The example that training loops import, against a server."""

from __future__ import annotations

import runpy
from pathlib import Path

import httpx
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/rlhf_reward.py"


def test_the_reward_function_gives_each_row_its_users_reward(
    api: httpx.Client, fresh_user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = {"prompt": "Why is the sky blue?", "chosen": "Scattering.", "rejected": "What a lovely question, dear!"}
    api.post(f"/users/{fresh_user}/adapt", json={"pairs": [pair]}).raise_for_status()
    monkeypatch.setenv("METAREWARD_URL", str(api.base_url))
    monkeypatch.delenv("METAREWARD_API_KEY", raising=False)
    reward = runpy.run_path(str(EXAMPLE))["personal_reward"]
    chat = [{"role": "user", "content": "Name a tree."}]
    rows = [
        (fresh_user, "Oak."),
        (fresh_user, "There are so many!"),
        ("nobody", "Oak."),
        ("nobody", "Elm."),
        ("nobody", ""),
    ]
    users = [user for user, _ in rows]

    texts = reward(["Name a tree."] * 5, [text for _, text in rows], users, kind=["a"] * 5)
    messages = reward([chat] * 5, [[{"role": "assistant", "content": text}] for _, text in rows], users)

    expected = [
        api.post("/score", json={"user_id": user, "prompt": "Name a tree.", "completions": [text]}).json()["rewards"][0]
        for user, text in rows
    ]
    assert texts == pytest.approx(expected, abs=1e-6)
    assert messages == texts
    assert texts[0] != texts[2]
