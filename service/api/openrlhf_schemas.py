"""What OpenRLHF sends to a reward server, and what it reads."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class GetRewardRequest(BaseModel):
    """Samples of a policy, rendered by its own tokenizer. Other fields change nothing."""

    query: list[str] = Field(description="Prompts and completions in one, in the policy's chat template.")
    prompts: list[str | None] | None = Field(
        None, description="The part of each query that is its prompt; tells where the completion begins."
    )
    labels: list[Any] | None = Field(
        None,
        description="Whose reward each is: a user id, or a JSON object (or its text) with a `user_id`; null and an "
        "empty text mean the population. Not looked at where the URL names the user.",
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "query": [
                        "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\nScattering.<|im_end|>"
                    ],
                    "prompts": ["<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"],
                    "labels": ["ada"],
                }
            ]
        }
    )


class GetRewardResponse(BaseModel):
    """Numbers only, and as many in every list as there are queries: the trainer makes tensors of all of them."""

    rewards: list[float] = Field(description="Raw rewards, log-odds: what to train on.")
    scores: list[float] = Field(
        description="0 to 1: the calibrated probability that the user prefers this text to the average training text."
    )
    extra_logs: dict[str, list[float]] = Field(
        description="`cold_start`: 1 where the user has told nothing yet; `population`: 1 where no user was named; "
        "`stale`: 1 where the database is away and memory served; `truncated`: 1 where the text was shortened; "
        "`unknown_format`: 1 where the chat format was not recognised; `reward_std`: posterior standard deviation of "
        "the reward, left out where the checkpoint's recipe has none."
    )
