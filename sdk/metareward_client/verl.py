"""Rewards of single users for verl (0.9): `reward.custom_reward_function`.

    reward.custom_reward_function.path=pkg://metareward_client.verl

`compute_score` is for the reward managers naive, dapo, gdpo and rate_limited, which await it once a sample, many at a
time; `compute_score_sync` for the manager remote, which takes no coroutine function. verl passes `data_source`,
`solution_str`, `ground_truth` and `extra_info` of a row, and what stands under `reward_kwargs`
(`verl/trainer/ppo/reward.py`); prompt and user must be in `extra_info`. verl itself is not imported.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from metareward_client._rows import Conversation, conversation_and_answer, user_id_of
from metareward_client._shared import shared_async_client, shared_client
from metareward_client.answers import Score
from metareward_client.errors import TemporaryError

TIMEOUT_S = 240.0
"""Less than the 300 seconds after which the manager rate_limited gives a sample up and rewards it with 0."""

_log = logging.getLogger(__name__)


async def compute_score(
    data_source: Any,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    base_url: str | None = None,
    timeout: float = TIMEOUT_S,
    on_failure: float | str | None = "raise",
    on_missing_user: str = "population",
    prompt_key: str = "prompt",
    user_key: str = "user_id",
    truncate: bool = True,
    reward_router_address: Any = None,
    reward_model_tokenizer: Any = None,
) -> dict[str, float]:
    """The reward of one sample for the user of its row.

    Args:
        data_source: Not used.
        solution_str: What the policy wrote, decoded without special tokens.
        ground_truth: Not used.
        extra_info: Of the row: `prompt`, a text or messages (or `raw_prompt`, which agent loops of verl's older trainer
            add by themselves), and `user_id`.
        base_url: The server; METAREWARD_URL, then http://127.0.0.1:8000 by default.
        timeout: Seconds to wait for this reward in all, while the server restarts or is overloaded.
        on_failure: `raise`, or the reward of samples that the server did not answer in time. What it refuses for good
            (a bad user id, a wrong key) is raised in either case.
        on_missing_user: What a row without a user gets: the reward of the `population`, or an `error`.
        prompt_key: Where in `extra_info` the prompt is.
        user_key: Where in `extra_info` the user's id is.
        truncate: Shorten texts that the backbone cannot read whole instead of failing.
        reward_router_address: verl passes it where a reward model of its own runs too. Not used.
        reward_model_tokenizer: Likewise.

    Returns:
        The same keys for every sample, and numbers only, as verl's batches need them: `score` (log-odds), `reward_std`
        (posterior standard deviation; NaN where there is none), and as 0 or 1 `cold_start` (nobody has adapted this
        user), `population` (the row has no user), `truncated` and `failed`.

    Raises:
        ValueError: The row has no prompt, no user where it must, or an option has a value that it does not know.
        MetarewardError: The server refused, or did not answer in time and `on_failure` is `raise`.
    """
    fallback = _fallback(on_failure)
    conversation, text, user_id = _asked(extra_info, solution_str, prompt_key, user_key, on_missing_user)
    try:
        client = shared_async_client(base_url)
        scored = await client._score_gathered(conversation, text, user_id, 0, truncate, timeout)
    except TemporaryError as error:
        return _failed(error, fallback)
    return _answered(scored)


def compute_score_sync(
    data_source: Any,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    base_url: str | None = None,
    timeout: float = TIMEOUT_S,
    on_failure: float | str | None = "raise",
    on_missing_user: str = "population",
    prompt_key: str = "prompt",
    user_key: str = "user_id",
    truncate: bool = True,
    reward_router_address: Any = None,
    reward_model_tokenizer: Any = None,
) -> dict[str, float]:
    """As `compute_score`, for callers without an event loop: the manager remote, threads and scripts."""
    fallback = _fallback(on_failure)
    conversation, text, user_id = _asked(extra_info, solution_str, prompt_key, user_key, on_missing_user)
    try:
        client = shared_client(base_url)
        scored = client._score_gathered(conversation, text, user_id, 0, truncate, timeout)
    except TemporaryError as error:
        return _failed(error, fallback)
    return _answered(scored)


def _fallback(on_failure: float | str | None) -> float | None:
    if on_failure is None or on_failure == "raise":
        return None
    if isinstance(on_failure, str) or not math.isfinite(on_failure):
        raise ValueError("on_failure must be raise or the reward, a finite number, of samples without an answer")
    return float(on_failure)


def _asked(
    extra_info: Mapping[str, Any] | None, solution: str, prompt_key: str, user_key: str, on_missing_user: str
) -> tuple[Conversation, str, str | None]:
    if on_missing_user not in ("population", "error"):
        raise ValueError("on_missing_user must be population or error")
    row = extra_info or {}
    prompt = row.get(prompt_key)
    if prompt is None:
        prompt = row.get("raw_prompt")
    if prompt is None:
        raise ValueError(
            f"extra_info has no {prompt_key!r}, and verl gives reward functions no prompt: write it into every row of "
            f"the parquet file, extra_info={{{prompt_key!r}: row['prompt'], {user_key!r}: ...}}, or name its field "
            "with reward_kwargs.prompt_key"
        )
    user_id = user_id_of(row.get(user_key))
    if user_id is None and on_missing_user == "error":
        raise ValueError(f"extra_info has no {user_key!r}: give the row one, or choose on_missing_user=population")
    conversation, text = conversation_and_answer(prompt, solution)
    return conversation, text, user_id


def _answered(scored: Score) -> dict[str, float]:
    return {
        "score": scored.rewards[0],
        "reward_std": math.nan if scored.reward_std is None else scored.reward_std[0],
        "cold_start": float(scored.user_state == "cold_start"),
        "population": float(scored.user_state == "population"),
        "truncated": float(bool(scored.truncated)),
        "failed": 0.0,
    }


def _failed(error: TemporaryError, fallback: float | None) -> dict[str, float]:
    if fallback is None:
        raise error
    _log.warning("a sample gets the reward %g in place of an answer: %s", fallback, error)
    return {
        "score": fallback,
        "reward_std": math.nan,
        "cold_start": 0.0,
        "population": 0.0,
        "truncated": 0.0,
        "failed": 1.0,
    }
