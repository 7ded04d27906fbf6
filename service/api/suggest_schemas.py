"""Which comparison to ask a user for, and what it would tell."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas import MinVersion, NonBlank, Prompt, Strict

MAX_QUESTIONS: Final = 10_000
"""Pairs of completions of one prompt, over all candidates, that one request may choose from."""

MAX_SUGGESTIONS: Final = 50


class CandidateIn(Strict):
    """Completions of one prompt, any two of which could be shown to the user."""

    prompt: Prompt
    completions: Annotated[list[NonBlank], Field(min_length=2, description="Every two of them are a question.")]


class SuggestRequest(Strict):
    """What the user could be asked."""

    candidates: list[CandidateIn] = Field(
        min_length=1, description=f"With at most {MAX_QUESTIONS} pairs of completions in all: 141 of one prompt."
    )
    count: int = Field(1, ge=1, le=MAX_SUGGESTIONS, description="Most questions to suggest.")
    min_version: MinVersion = 0
    truncate: bool = Field(
        False, description="Shorten texts that the backbone cannot read whole, instead of refusing them."
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "candidates": [
                        {
                            "prompt": "How do I descale a kettle?",
                            "completions": ["Vinegar, an hour, rinse.", "There are, perhaps, many ways...", "Buy one."],
                        },
                        {"prompt": "Why is the sky blue?", "completions": ["Scattering.", "Magic, one might say."]},
                    ],
                    "count": 2,
                }
            ]
        }
    )


class SuggestionOut(BaseModel):
    """One question: which of two completions do you prefer?"""

    candidate: int = Field(description="Index of the candidate.")
    a: int = Field(description="Index of a completion of it.")
    b: int = Field(description="Index of the other.")
    information_gain_nats: float = Field(
        description="How much the answer is expected to tell of the user's weights, after those to the questions "
        "before it; at most ln 2 = 0.693."
    )
    preference_probability: float = Field(description="Calibrated probability that the user prefers a, as known now.")


class SuggestResponse(BaseModel):
    """Questions in the order in which to ask them."""

    user_id: str
    user_state: Literal["adapted", "cold_start", "stale"]
    version: int = Field(description="The version of the user that was asked about; 0 for an unknown user.")
    suggestions: list[SuggestionOut] = Field(
        description="Fewer than `count` where there are no more questions of different texts."
    )
    truncated: list[list[int]] = Field(description="By candidate: indices of the completions that were shortened.")
    checkpoint_id: str
    timings_ms: dict[str, float]
