"""Rewards of single users for OpenRLHF (0.11): a Python file for `--reward.remote_url`.

    from metareward_client.openrlhf import reward_func

OpenRLHF takes a path that ends in .py for a file with a `reward_func(queries, prompts, labels)`, which it calls in a
thread for each sample (`openrlhf/utils/agent.py`). Unlike the server's URL in its place it waits as the server says,
carries a key, and can say what the user wrote: OpenRLHF's prompts are rendered by the policy's chat template, but a
label `{"user_id": "ada", "prompt": ...}` (`--data.label_key`) is passed as it is. OpenRLHF itself is not imported.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from metareward_client._call import Call, reader
from metareward_client._rows import Conversation, average_probability, conversation_and_answer, user_id_of
from metareward_client._shared import shared_client
from metareward_client.answers import Score
from metareward_client.errors import TemporaryError

_log = logging.getLogger(__name__)
# What the token that ended an answer is decoded to: OpenRLHF keeps it, and no user gets to see it.
_END = re.compile(r"(?:<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>|</s>|<eos>|<end_of_turn>)\s*\Z")
# What is left of a prompt that was shortened from its start; less may be a coincidence.
_LEAST_LEFT = 16
# The same names for every sample, whatever became of it: OpenRLHF makes batches of them.
_LOGS = {
    "cold_start": 0.0,
    "population": 0.0,
    "stale": 0.0,
    "truncated": 0.0,
    "unknown_format": 0.0,
    "failed": 0.0,
    "reward_std": math.nan,
}


def completion_of(query: str, prompt: str) -> str:
    """The policy's answer in a query, which is the prompt as the policy read it with the answer behind it.

    The token that ended it is left out where it is one of the usual ones (`<|im_end|>`, `<|eot_id|>`, `</s>`, ...).

    Raises:
        ValueError: The prompt, or the end of one that was too long, is not at the start of the query.
    """
    begins = len(prompt) if query.startswith(prompt) else _left_of(prompt, query)
    return _END.sub("", query[begins:])


def _left_of(prompt: str, query: str) -> int:
    # OpenRLHF shortens prompts from the start, by whole tokens.
    for start in range(1, len(prompt) - _LEAST_LEFT + 1):
        if query.startswith(prompt[start : start + _LEAST_LEFT]) and query.startswith(prompt[start:]):
            return len(prompt) - start
    raise ValueError(
        "a query does not begin with its prompt: the tokenizer writes texts in another way than it reads them; give "
        "reward_function a completion=... that finds the answer in a query"
    )


class Rewarded(BaseModel):
    """The server's answer to queries as OpenRLHF sends them. [queries] each."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


@dataclass(frozen=True)
class RewardFunction:
    """What `reward_function` makes: `reward_func(queries, prompts, labels)`. Threads share it, and so do processes."""

    base_url: str | None
    timeout: float
    on_failure: float | None
    completion: Callable[[str, str], str]
    truncate: bool

    def __call__(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_: Any
    ) -> dict[str, Any]:
        """Rewards of samples, in their order, in the form of OpenRLHF's reward models.

        Args:
            queries: Prompt and answer as the policy read and wrote them, with special tokens.
            prompts: The prompts alone.
            labels: Of each row of the data set: `{"user_id": ..., "prompt": a text or messages}` or JSON of it; or a
                user's id, where the server is to read the query back, which it can in the usual chat formats. None and
                "" are the population.

        Returns:
            `rewards` (log-odds), `scores` (calibrated probabilities that the user prefers the answer to the average
            text, for dynamic filtering) and `extra_logs`, numbers under the same names for every sample: as 0 or 1
            `cold_start` (nobody has adapted this user), `population`, `stale`, `truncated`, `unknown_format` and
            `failed`, and `reward_std` (NaN where there is none). `[samples]` each.

        Raises:
            MetarewardError: The server refused, or did not answer in time and there is no `on_failure`.
            ValueError: A label or a query cannot be read.
        """
        rewards, logs = [], []
        for query, prompt, label in zip(queries, prompts, labels, strict=True):
            try:
                reward, log = self._ask(query, prompt, label)
            except TemporaryError as error:
                if self.on_failure is None:
                    raise
                _log.warning("a sample gets the reward %g in place of an answer: %s", self.on_failure, error)
                reward, log = self.on_failure, {"failed": 1.0}
            rewards.append(reward)
            logs.append(_LOGS | {name: value for name, value in log.items() if name in _LOGS})
        return {
            "rewards": rewards,
            "scores": [average_probability(reward) for reward in rewards],
            "extra_logs": {name: [log[name] for log in logs] for name in _LOGS} if logs else {},
        }

    def _ask(self, query: str, prompt: str, label: Any) -> tuple[float, dict[str, float]]:
        client = shared_client(self.base_url)
        user_id, wrote = _said(label)
        if wrote is None:
            answer = client._run(self._as_rendered(query, prompt, user_id), self.timeout)
            return answer.rewards[0], {name: values[0] for name, values in answer.extra_logs.items()}
        conversation, text = conversation_and_answer(wrote, self.completion(query, prompt))
        scored = client._score_gathered(conversation, text, user_id, 0, self.truncate, self.timeout)
        return scored.rewards[0], _logged(scored)

    def _as_rendered(self, query: str, prompt: str, user_id: str | None) -> Call[Rewarded]:
        body = {"query": [query], "prompts": [prompt], "labels": [user_id]}
        return Call(
            "POST",
            "/v1/openrlhf/get_reward",
            reader(Rewarded),
            json.dumps(body).encode(),
            (("truncate", str(self.truncate).lower()),),
        )


def reward_function(
    base_url: str | None = None,
    *,
    timeout: float = 300.0,
    on_failure: float | None = None,
    completion: Callable[[str, str], str] = completion_of,
    truncate: bool = True,
) -> RewardFunction:
    """A `reward_func` for OpenRLHF: each sample's reward for the user of its label.

    Args:
        base_url: The server; METAREWARD_URL, then http://127.0.0.1:8000 by default.
        timeout: Seconds that a sample waits for its reward in all, while the server restarts or is overloaded.
        on_failure: The reward of samples that the server did not answer in time. None: the client's error, of which
            OpenRLHF logs a line, and ends the run when it misses the reward. What the server refuses for good (a bad
            user id, a wrong key) is raised in either case.
        completion: Finds the answer in a query, given its prompt; used where a label says what the user wrote.
        truncate: Shorten texts that the backbone cannot read whole instead of failing.

    Raises:
        ValueError: `on_failure` is no finite number, or `timeout` not above 0.
    """
    if on_failure is not None and not math.isfinite(on_failure):
        raise ValueError("on_failure must be a finite number, or None to raise the client's error")
    if not timeout > 0:
        raise ValueError("timeout must be above 0 seconds")
    return RewardFunction(base_url, timeout, on_failure, completion, truncate)


reward_func = reward_function()
"""With every option at its default: METAREWARD_URL and METAREWARD_API_KEY name the server and a key."""


def _said(label: Any) -> tuple[str | None, Conversation | None]:
    """Whose reward a label asks for, and what they wrote, where it says so."""
    if isinstance(label, str) and label.lstrip().startswith("{"):
        try:
            label = json.loads(label)
        except ValueError:
            raise ValueError("a label begins with { but is no JSON: write it with json.dumps") from None
    if not isinstance(label, Mapping):
        return user_id_of(label), None
    return user_id_of(label.get("user_id")), label.get("prompt")


def _logged(scored: Score) -> dict[str, float]:
    logged = {"truncated": float(bool(scored.truncated)), scored.user_state: 1.0}
    return logged if scored.reward_std is None else logged | {"reward_std": scored.reward_std[0]}
