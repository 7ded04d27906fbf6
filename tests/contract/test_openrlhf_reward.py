"""Rewards for OpenRLHF through a Python file: how it loads the file, calls it and reads what comes back, step by step.

After OpenRLHF 0.11.2: `SingleTurnAgentExecutor` of `utils/agent.py`, `preprocess_data` of `datasets/prompts_dataset.py`
and `_process_response_into_experience` of `trainer/ppo_utils/samples_generator.py`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import pickle
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from guarded import Guarded
from metareward_client import InvalidRequest, NotAuthenticated, TemporaryError
from metareward_client.openrlhf import RewardFunction, completion_of, reward_function
from servers import free_port

from benchmarks.server import ServerProcess

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEXTS = ("Oak.", "What a lovely question, dear! I adore it:\n- Oak\n- Elm", "")


def chatml(messages: list[dict[str, str]]) -> str:
    return "".join(f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in messages) + (
        "<|im_start|>assistant\n"
    )


def homemade(messages: list[dict[str, str]]) -> str:
    return "".join(f"[{each['role']}] {each['content']} [/]" for each in messages) + "[assistant] "


def load(path: str) -> Callable[..., Any]:
    """`--reward.remote_url` with a path: the first one, if it ends in .py."""
    spec = importlib.util.spec_from_file_location("reward_func", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., Any] = module.reward_func
    return found


async def execute(reward_func: Callable[..., Any], query: str, prompt: str, label: Any) -> dict[str, Any]:
    """One sample, whose reward is asked for in a thread; what the trainer logs of it is a number under each name."""
    (answer,) = await asyncio.gather(asyncio.to_thread(reward_func, [query], [prompt], [label]))
    scores = answer.get("scores")
    scores = answer.get("rewards") if scores is None else scores
    logs = answer.get("extra_logs") or {}
    return {name: as_tensor(value) for name, value in {"reward": answer["rewards"], "score": scores, **logs}.items()}


def as_tensor(value: Any) -> float:
    """What `torch.tensor([value])` holds, which takes numbers and lists of numbers and nothing else."""
    tensor = np.array([value])
    assert tensor.dtype == np.float64
    return float(tensor.item())


def roll_out(reward_func: Callable[..., Any], samples: list[tuple[str, str, Any]]) -> list[dict[str, Any]]:
    async def all_of_them() -> list[dict[str, Any]]:
        return await asyncio.gather(*(execute(reward_func, *sample) for sample in samples))

    return asyncio.run(all_of_them())


@pytest.fixture
def rows(api: httpx.Client, fresh_user: str) -> list[dict[str, Any]]:
    """The example's data set, for somebody who likes it plain, somebody new and nobody."""
    pair = {"prompt": "Why is the sky blue?", "chosen": "Scattering.", "rejected": "What a lovely question, dear!"}
    api.post(f"/users/{fresh_user}/adapt", json={"pairs": [pair]}).raise_for_status()
    named = {"ada": fresh_user, "bob": f"{fresh_user}-new", None: None}
    row = runpy.run_path(str(EXAMPLES / "openrlhf_data.py"))["row"]
    asked = [json.loads(line) for line in (EXAMPLES / "prompts.jsonl").read_text().splitlines()]
    return [{**row(each["prompt"], named[each["user_id"]]), "user_id": named[each["user_id"]]} for each in asked]


def expected(api: httpx.Client, rows: list[dict[str, Any]], texts: tuple[str, ...] = TEXTS) -> list[float]:
    items = [{"user_id": row["user_id"], "prompt": row["prompt"], "completions": list(texts)} for row in rows]
    results = api.post("/score", json={"items": items}).raise_for_status().json()["results"]
    return [reward for result in results for reward in result["rewards"]]


@pytest.mark.parametrize(
    ("template", "end", "label_of"),
    [
        (homemade, "</s>", lambda row: row["label"]),
        (chatml, "<|im_end|>", lambda row: json.loads(row["label"])),
        (chatml, "<|im_end|>", lambda row: row["user_id"]),
    ],
    ids=["any template, JSON", "any template, a column of structs", "a usual template, the user's id"],
)
def test_every_sample_gets_the_reward_of_its_labels_user(
    server: ServerProcess,
    api: httpx.Client,
    rows: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    template: Callable[[list[dict[str, str]]], str],
    end: str,
    label_of: Callable[[dict[str, Any]], Any],
) -> None:
    monkeypatch.setenv("METAREWARD_URL", server.url)
    reward_func = load(str(EXAMPLES / "openrlhf_reward.py"))
    prompts = [template(row["prompt"]) for row in rows]

    samples = roll_out(
        reward_func,
        [
            (prompt + text + end, prompt, label_of(row))
            for row, prompt in zip(rows, prompts, strict=True)
            for text in TEXTS
        ],
    )

    rewards = np.array([sample["reward"] for sample in samples])
    np.testing.assert_allclose(rewards, expected(api, rows), atol=1e-6)
    # Dynamic filtering looks at scores, between 0 and 1.
    np.testing.assert_allclose([sample["score"] for sample in samples], 1 / (1 + np.exp(-rewards)), atol=1e-9)
    assert len({tuple(sample) for sample in samples}) == 1, "the same names for every sample"
    asked_by = [row["user_id"] for row in rows for _ in TEXTS]
    assert [sample["cold_start"] for sample in samples] == [(user or "").endswith("-new") for user in asked_by]
    assert [sample["population"] for sample in samples] == [user is None for user in asked_by]
    assert all(sample["reward_std"] > 0 and sample["failed"] == sample["unknown_format"] == 0 for sample in samples)
    assert abs(samples[0]["reward"] - samples[3 * len(TEXTS)]["reward"]) > 0.01, "one prompt and text, two people"


def test_a_server_with_keys_takes_one_from_the_environment(
    guarded: Guarded, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [(homemade(rows[0]["prompt"]) + "Oak.</s>", homemade(rows[0]["prompt"]), rows[0]["label"])]
    monkeypatch.setenv("METAREWARD_URL", guarded.server.url)
    monkeypatch.delenv("METAREWARD_API_KEY", raising=False)
    with pytest.raises(NotAuthenticated):
        roll_out(reward_function(on_failure=0.0), samples)
    monkeypatch.setenv("METAREWARD_API_KEY", guarded.key(role="score"))
    assert roll_out(reward_function(), samples)[0]["cold_start"] == 1.0


@pytest.mark.parametrize("label", ['{"user_id": "ada", "prompt": "Name a tree."}', "ada"], ids=["prompt", "user's id"])
def test_a_server_that_stays_away_costs_the_run_or_a_reward_of_ones_choice(label: str) -> None:
    prompt = chatml([{"role": "user", "content": "Name a tree."}])
    url, sample = f"http://127.0.0.1:{free_port()}", (prompt + "Oak.<|im_end|>", prompt, label)
    with pytest.raises(TemporaryError):
        roll_out(reward_function(url, timeout=0.3), [sample])
    (found,) = roll_out(reward_function(url, timeout=0.3, on_failure=-2.0), [sample])
    assert (found["reward"], found["failed"]) == (-2.0, 1.0)
    assert math.isnan(found["reward_std"])


def test_what_can_never_be_scored_is_an_error_whatever_was_chosen(server: ServerProcess) -> None:
    prompt = homemade([{"role": "user", "content": "Name a tree."}])
    lenient = reward_function(server.url, on_failure=0.0)
    bad = json.dumps({"user_id": "no spaces, please", "prompt": "Name a tree."})
    with pytest.raises(InvalidRequest, match="user_id"):
        roll_out(lenient, [(prompt + "Oak.", prompt, bad)])
    with pytest.raises(ValueError, match=r"json\.dumps"):
        roll_out(lenient, [(prompt + "Oak.", prompt, "{'user_id': 'ada'}")])
    label = json.dumps({"user_id": "ada", "prompt": "Name a tree."})
    with pytest.raises(ValueError, match="completion="):
        roll_out(lenient, [("something else altogether", prompt, label)])


def test_nothing_is_answered_with_nothing(server: ServerProcess) -> None:
    assert reward_function(server.url)([], [], []) == {"rewards": [], "scores": [], "extra_logs": {}}


@pytest.mark.parametrize(
    ("query", "prompt", "completion"),
    [
        ("[user] Name a tree. [/]Oak.<|eot_id|>", "[user] Name a tree. [/]", "Oak."),
        ("[user] Name a tree. [/]Oak.<\uff5cend\u2581of\u2581sentence\uff5c>", "[user] Name a tree. [/]", "Oak."),
        ("[user] Name a tree. [/]Oak.<end_of_turn>\n", "[user] Name a tree. [/]", "Oak."),
        ("[user] Name a tree. [/]", "[user] Name a tree. [/]", ""),
        ("[user] Name a tree. [/]x < y | z > w", "[user] Name a tree. [/]", "x < y | z > w"),
        ("words. Name a tree. [/]Oak.</s>", "[user] Many words. Name a tree. [/]", "Oak."),
    ],
    ids=["Llama", "DeepSeek", "Gemma", "nothing", "no end", "shortened"],
)
def test_the_answer_is_what_the_user_sees_of_a_query(query: str, prompt: str, completion: str) -> None:
    assert completion_of(query, prompt) == completion


@pytest.mark.parametrize("options", [{"on_failure": math.nan}, {"timeout": 0.0}], ids=["on_failure", "timeout"])
def test_an_option_that_means_nothing_is_named(options: dict[str, float], request: pytest.FixtureRequest) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        reward_function(**options)


def test_a_reward_function_travels_to_other_processes() -> None:
    made = reward_function("http://127.0.0.1:9", timeout=5)
    again = pickle.loads(pickle.dumps(made))
    assert isinstance(again, RewardFunction)
    assert again == made
