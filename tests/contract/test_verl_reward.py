"""Rewards for verl: how it loads a reward function, calls it and reads what comes back, step by step.

After verl 0.9.1: `utils/import_utils.py` (`load_module`), `trainer/ppo/reward.py` (`get_custom_reward_fn`), the reward
managers naive and remote in `experimental/reward_loop/reward_manager`, and `_postprocess` of
`experimental/agent_loop/agent_loop.py`, which makes a batch of what they return.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import importlib.util
import inspect
import math
import re
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from metareward_client import InvalidRequest, TemporaryError
from servers import free_port

from benchmarks.server import ServerProcess

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEXTS = ("Oak.", "What a lovely question, dear! I adore it:\n- Oak\n- Elm", "")
# What verl passes to a reward function of a reward model's own server, and this one does not need.
ROUTER = {"reward_router_address": None, "reward_model_tokenizer": None}


def load(path: str, name: str, **reward_kwargs: Any) -> Callable[..., Any]:
    """`reward.custom_reward_function`: path, name and reward_kwargs, as every reward worker loads them."""
    if path.startswith("pkg://"):
        module = importlib.import_module(path.removeprefix("pkg://"))
    else:
        spec = importlib.util.spec_from_file_location("custom_module", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    function = getattr(module, name)
    if not inspect.iscoroutinefunction(function):
        return partial(lambda **row: function(**(row | reward_kwargs)))

    async def awaited(**row: Any) -> Any:
        return await function(**(row | reward_kwargs))

    return awaited


async def run_single(function: Callable[..., Any], row: dict[str, Any], text: str, **passed: Any) -> dict[str, Any]:
    """One sample's way through a reward manager."""
    extra_info = row.get("extra_info", {})
    extra_info |= {"turn_scores": [], "tool_rewards": [], "num_turns": 2, "rollout_reward_scores": {}}
    asked = {
        "data_source": row["data_source"],
        "solution_str": text,
        "ground_truth": row["reward_model"]["ground_truth"],
        "extra_info": extra_info,
        **passed,
    }
    if inspect.iscoroutinefunction(function):
        result = await function(**asked)
    else:
        result = await asyncio.get_running_loop().run_in_executor(None, lambda: function(**asked))
    return {"reward_score": result["score"], "reward_extra_info": dict(result)}


def batch_of(samples: list[dict[str, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """What the trainer makes of many samples; a key that one of them lacks is a KeyError."""
    names = list(samples[0]["reward_extra_info"])
    found = {name: np.array([sample["reward_extra_info"][name] for sample in samples]) for name in names}
    assert all(values.dtype == np.float64 for values in found.values())
    return found


def roll_out(
    function: Callable[..., Any], rows: list[dict[str, Any]], texts: tuple[str, ...] = TEXTS
) -> list[dict[str, Any]]:
    """All texts for all rows at once, on a loop of its own, as one reward worker has them."""

    async def all_of_them() -> list[dict[str, Any]]:
        return await asyncio.gather(*(run_single(function, copy.deepcopy(row), text) for row in rows for text in texts))

    return asyncio.run(all_of_them())


@pytest.fixture
def rows(api: httpx.Client, fresh_user: str) -> list[dict[str, Any]]:
    """The example's data set, for somebody who likes it plain, somebody new and nobody."""
    pair = {"prompt": "Why is the sky blue?", "chosen": "Scattering.", "rejected": "What a lovely question, dear!"}
    api.post(f"/users/{fresh_user}/adapt", json={"pairs": [pair]}).raise_for_status()
    found: list[dict[str, Any]] = runpy.run_path(str(EXAMPLES / "verl_data.py"))["rows"](EXAMPLES / "prompts.jsonl")
    named = {"ada": fresh_user, "bob": f"{fresh_user}-new", None: None}
    for row in found:
        row["extra_info"]["user_id"] = named[row["extra_info"]["user_id"]]
    return found


def expected(api: httpx.Client, rows: list[dict[str, Any]], texts: tuple[str, ...] = TEXTS) -> list[float]:
    items = [
        {"user_id": row["extra_info"]["user_id"], "prompt": row["prompt"], "completions": list(texts)} for row in rows
    ]
    results = api.post("/score", json={"items": items}).raise_for_status().json()["results"]
    return [reward for result in results for reward in result["rewards"]]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (str(EXAMPLES / "verl_reward.py"), "compute_score"),
        ("pkg://metareward_client.verl", "compute_score"),
        (str(EXAMPLES / "verl_reward.py"), "compute_score_sync"),
    ],
    ids=["naive, a file", "naive, a package", "remote"],
)
def test_every_sample_gets_the_reward_of_its_rows_user(
    server: ServerProcess, api: httpx.Client, rows: list[dict[str, Any]], path: str, name: str
) -> None:
    function = load(path, name, base_url=server.url, timeout=60)
    assert inspect.iscoroutinefunction(function) == (name == "compute_score")

    samples = roll_out(function, rows)

    np.testing.assert_allclose([sample["reward_score"] for sample in samples], expected(api, rows), atol=1e-6)
    logged = batch_of(samples)
    asked_by = [row["extra_info"]["user_id"] for row in rows for _ in TEXTS]
    assert logged["cold_start"].tolist() == [(user or "").endswith("-new") for user in asked_by]
    assert logged["population"].tolist() == [user is None for user in asked_by]
    assert not logged["failed"].any()
    assert (logged["reward_std"] > 0).all()
    # The same prompt and texts, for two people.
    assert abs(samples[0]["reward_score"] - samples[3 * len(TEXTS)]["reward_score"]) > 0.01


def test_samples_that_wait_at_the_same_time_travel_together(server: ServerProcess, rows: list[dict[str, Any]]) -> None:
    def answered() -> float:
        page = httpx.get(server.metrics_url).text
        return sum(
            float(value)
            for labels, value in re.findall(r"^metareward_requests_total\{(.*)\} (\S+)$", page, re.MULTILINE)
            if '"/score"' in labels
        )

    function = load("pkg://metareward_client.verl", "compute_score", base_url=server.url, timeout=60)
    before = answered()
    samples = roll_out(function, rows, tuple(f"Tree {number}." for number in range(10)))
    assert len(samples) == 80
    assert 1 <= answered() - before <= 10


def test_prompts_come_as_parquet_readers_and_agent_loops_give_them(
    server: ServerProcess, api: httpx.Client, rows: list[dict[str, Any]]
) -> None:
    function = load("pkg://metareward_client.verl", "compute_score", base_url=server.url, timeout=60)
    of_pandas, of_agent_loop, text = (copy.deepcopy(rows[2]) for _ in range(3))
    # A column of structs has every key in every row.
    messages = [{**message, "name": None} for message in rows[2]["prompt"]]
    of_pandas["extra_info"]["prompt"] = np.array(messages, dtype=object)
    of_agent_loop["extra_info"] = {"raw_prompt": messages, "user_id": np.str_(rows[2]["extra_info"]["user_id"])}
    text["extra_info"]["prompt"] = "What makes bread rise?"
    text["prompt"] = "What makes bread rise?"

    samples = roll_out(function, [of_pandas, of_agent_loop, text], ("Yeast.",))

    found = [sample["reward_score"] for sample in samples]
    np.testing.assert_allclose(found, expected(api, [rows[2], rows[2], text], ("Yeast.",)), atol=1e-6)


@pytest.mark.parametrize("name", ["compute_score", "compute_score_sync"])
def test_a_server_that_stays_away_ends_the_run_or_costs_a_reward_of_ones_choice(
    rows: list[dict[str, Any]], name: str
) -> None:
    away = {"base_url": f"http://127.0.0.1:{free_port()}", "timeout": 0.3}
    with pytest.raises(TemporaryError):
        roll_out(load("pkg://metareward_client.verl", name, **away), rows[:1], ("Oak.",))
    samples = roll_out(load("pkg://metareward_client.verl", name, **away, on_failure=-1.5), rows[:2], ("Oak.",))
    assert [sample["reward_score"] for sample in samples] == [-1.5, -1.5]
    logged = batch_of(samples)
    assert logged["failed"].tolist() == [1.0, 1.0]
    assert np.isnan(logged["reward_std"]).all()


def test_a_batch_with_a_failed_sample_has_the_same_columns(server: ServerProcess, rows: list[dict[str, Any]]) -> None:
    there = load("pkg://metareward_client.verl", "compute_score", base_url=server.url, timeout=60)
    away = load(
        "pkg://metareward_client.verl",
        "compute_score",
        base_url=f"http://127.0.0.1:{free_port()}",
        timeout=0.3,
        on_failure=0,
    )
    logged = batch_of(roll_out(there, rows[:1], ("Oak.",)) + roll_out(away, rows[:1], ("Oak.",)))
    assert logged["failed"].tolist() == [0.0, 1.0]


def test_what_can_never_be_scored_is_an_error_whatever_was_chosen(
    server: ServerProcess, rows: list[dict[str, Any]]
) -> None:
    lenient = load("pkg://metareward_client.verl", "compute_score", base_url=server.url, on_failure=0.0)
    bad_id, no_prompt, no_user = (copy.deepcopy(rows[0]) for _ in range(3))
    bad_id["extra_info"]["user_id"] = "no spaces, please"
    del no_prompt["extra_info"]["prompt"]
    del no_user["extra_info"]["user_id"]
    with pytest.raises(InvalidRequest, match="user_id"):
        roll_out(lenient, [bad_id], ("Oak.",))
    with pytest.raises(ValueError, match=r"extra_info has no 'prompt'.*parquet.*prompt_key"):
        roll_out(lenient, [no_prompt], ("Oak.",))
    assert batch_of(roll_out(lenient, [no_user], ("Oak.",)))["population"].tolist() == [1.0]
    strict = load("pkg://metareward_client.verl", "compute_score", base_url=server.url, on_missing_user="error")
    with pytest.raises(ValueError, match="extra_info has no 'user_id'"):
        roll_out(strict, [no_user], ("Oak.",))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"on_failure": "zero"}, "on_failure"),
        ({"on_failure": math.nan}, "on_failure"),
        ({"on_missing_user": "skip"}, "on_missing_user"),
    ],
    ids=["a word", "no number", "no choice"],
)
def test_an_option_that_means_nothing_is_named(rows: list[dict[str, Any]], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        roll_out(load("pkg://metareward_client.verl", "compute_score", **options), rows[:1], ("Oak.",))


def test_a_misspelled_option_is_not_ignored_and_verls_own_arguments_are_taken(
    server: ServerProcess, rows: list[dict[str, Any]]
) -> None:
    with pytest.raises(TypeError, match="on_failur"):
        roll_out(load("pkg://metareward_client.verl", "compute_score", on_failur=0), rows[:1], ("Oak.",))
    beside_a_reward_model = load("pkg://metareward_client.verl", "compute_score", base_url=server.url, **ROUTER)
    assert len(roll_out(beside_a_reward_model, rows[:1], ("Oak.",))) == 1
