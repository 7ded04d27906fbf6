"""Requests and answers of the REST API, strict: unknown fields and numbers that are not finite are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
)

USER_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@+=~-]{0,127}$"
USER_ID_RULE = (
    "1 to 128 characters: letters, digits and . _ : @ + = ~ -, beginning with a letter or digit "
    "(hash or encode any other id)"
)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; send the text that the user saw")
    return text


# The pattern itself is checked in `limits`, where the message can say how to mend the id.
MAX_PAIRWISE = 65_536
"""Pairs of completions, n^2 of each item summed, that one request may ask for: one item of 256, or 655 of 10."""

UserId = Annotated[str, Field(description=f"Your name for the user. {USER_ID_RULE}.", examples=["ada"])]
NonBlank = Annotated[str, AfterValidator(_not_blank)]


class Strict(BaseModel):
    """Base of every request: unknown fields are an error, not ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ChatMessage(Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: NonBlank


def _conversation(messages: list[ChatMessage]) -> list[ChatMessage]:
    if any(message.role == "system" for message in messages[1:]):
        raise ValueError("has a system message that is not the first; move it to the front")
    if messages[-1].role != "user":
        raise ValueError("must end with a user message; the completion is the assistant's answer to it")
    return messages


# With a discriminator a bad prompt is judged as what it is, instead of failing as a text and as messages.
Prompt = Annotated[
    Annotated[NonBlank, Tag("prompt-text")]
    | Annotated[list[ChatMessage], Field(min_length=1), AfterValidator(_conversation), Tag("prompt-messages")],
    Discriminator(lambda prompt: "prompt-messages" if isinstance(prompt, list) else "prompt-text"),
    Field(
        description="The prompt: a text, or chat messages of which the last is the user's.",
        examples=["How do I keep basil alive indoors?"],
    ),
]


# A policy in training answers nothing now and then, and that has its reward too.
Completions = Annotated[
    list[str], Field(min_length=1, description="Candidate responses to the prompt; an empty one is scored as such.")
]
MinVersion = Annotated[int, Field(ge=0, le=2**53, description="Least version of the user to score with.")]


class ScoreItemIn(Strict):
    """Completions of one prompt for one user, or for nobody in particular."""

    user_id: UserId | None = Field(
        None, description="null or left out: nobody in particular, so that the population's reward is given."
    )
    prompt: Prompt
    completions: Completions
    min_version: MinVersion = 0


class ScoreOptions(Strict):
    """What both forms of a score request take."""

    truncate: bool = Field(
        False, description="Shorten texts that the backbone cannot read whole, instead of refusing them."
    )
    return_base_rewards: bool = Field(False, description="Also return the K base rewards of each completion.")
    return_pairwise: bool = Field(
        False,
        description="Also return `preference_probability` and `difference_std` for every two completions of an item: "
        f"n x n numbers for n completions, at most {MAX_PAIRWISE} in all (256 completions of one item).",
    )


class ScoreOneRequest(ScoreItemIn, ScoreOptions):
    """Completions of one prompt, for one user or for nobody in particular."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "user_id": "ada",
                    "prompt": "How do I repot a cactus?",
                    "completions": ["- Gloves on\n- New pot, gritty soil\n- Water after a week", "Well, it depends..."],
                }
            ]
        }
    )


class ScoreManyRequest(ScoreOptions):
    """Many users and prompts in one request."""

    items: list[ScoreItemIn] = Field(min_length=1)

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {"user_id": "ada", "prompt": "Why is the sky blue?", "completions": ["Scattering.", "Magic."]},
                        {"user_id": "bob", "prompt": "Why is the sky blue?", "completions": ["Scattering.", "Magic."]},
                        {"user_id": None, "prompt": "Why is the sky blue?", "completions": ["Scattering.", ""]},
                    ]
                }
            ]
        }
    )


ScoreRequest = Annotated[
    Annotated[ScoreOneRequest, Tag("score-one")] | Annotated[ScoreManyRequest, Tag("score-many")],
    Discriminator(lambda body: "score-many" if isinstance(body, dict) and "items" in body else "score-one"),
]


class ScoreResult(BaseModel):
    """Rewards of one item's completions."""

    user_id: str | None
    user_state: Literal["adapted", "cold_start", "stale", "population"] = Field(
        description="`cold_start`: nobody has adapted this user, or this checkpoint sees nothing of what they "
        "said (`carried`: start); the start serves. "
        "`stale`: the database is away, memory serves. `population`: nobody was named; the start serves."
    )
    version: int = Field(description="The user's version; 0 for an unknown user and for nobody.")
    rewards: list[float] = Field(description="Log-odds: reward(a) - reward(b) is the logit that the user prefers a.")
    reward_std: list[float] | None = Field(description="Posterior standard deviations, where the recipe has them.")
    order: list[int] = Field(description="Indices of the completions from best to worst.")
    best_probability: list[float] = Field(
        description="Calibrated probability that the user prefers the best completion, `order[0]`, to each; 0.5 to "
        "itself. Look at the completion that everybody would get: below 0.6, say, there is little to gain by another."
    )
    best_std: list[float] | None = Field(
        description="Posterior standard deviation of reward(order[0]) - reward(i), in log-odds: what this user's "
        "evidence leaves open; 0 for itself, null where the recipe has no posterior."
    )
    base_rewards: list[list[float]] | None = Field(None, description="With `return_base_rewards`.")
    preference_probability: list[list[float]] | None = Field(
        None,
        description="With `return_pairwise`: row i, column j holds the calibrated probability that the user prefers "
        "completion i to completion j; 0.5 on the diagonal.",
    )
    difference_std: list[list[float]] | None = Field(
        None,
        description="With `return_pairwise`: posterior standard deviation of reward(i) - reward(j), in log-odds; null "
        "where the recipe has no posterior.",
    )
    truncated: list[int] = Field(description="Indices of the completions that were shortened.")
    carried: Literal["exact", "linear", "retained", "start"] | None = Field(
        None,
        description="How the weights came from another checkpoint. exact: from what was measured with this one's "
        "heads; linear: through a map from other heads; retained: measured anew from what is kept; start: this one "
        "sees nothing of what the user said. null: they were solved for it when the user last said something.",
    )


class ScoreOneResponse(ScoreResult):
    """The answer to one item."""

    checkpoint_id: str
    timings_ms: dict[str, float]


class ScoreManyResponse(BaseModel):
    """The answers in the order of the items."""

    results: list[ScoreResult]
    checkpoint_id: str
    timings_ms: dict[str, float]


class InfoOut(BaseModel):
    """What this server serves."""

    version: str
    checkpoint: dict[str, Any] = Field(description="The one that answers.")
    checkpoints: list[dict[str, Any]] = Field(description="All that are loaded here.")
    backbone: dict[str, Any]
    limits: dict[str, Any]


class LiveOut(BaseModel):
    """The process runs."""

    live: bool


class ReadyOut(BaseModel):
    """Whether this process can take traffic, and what is degraded."""

    ready: bool
    degraded: list[str]


class SelfCheckRequest(Strict):
    """Nothing to choose: send {}."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})


class SelfCheckComparison(BaseModel):
    """One figure, in units of a base reward's spread between the golden texts."""

    against: Literal["batched", "neighbours", "recorded"] = Field(
        description="batched: in company against alone; neighbours: in company of other texts against before; "
        "recorded: alone against the checkpoint's record."
    )
    difference: float | None = Field(description="Root mean square; null: not finite.")
    tolerance: float = Field(description="What rounding explains, in this dtype.")
    passed: bool


class SelfCheckWorker(BaseModel):
    """What one worker answered."""

    worker: str = Field(description="`here`, or a remote worker by host, port and path.")
    status: Literal["passed", "failed", "unavailable"] = Field(
        description="unavailable: down, too busy or too slow, which says nothing of its numbers."
    )
    detail: str
    dtype: str | None
    comparisons: list[SelfCheckComparison]


class SelfCheckOut(BaseModel):
    """Whether the engine gives the numbers that the checkpoint recorded."""

    passed: bool = Field(description="Whether every worker did.")
    workers: list[SelfCheckWorker]
    seconds: float
    ended_at: float = Field(description="In seconds since 1970.")


class FieldProblem(BaseModel):
    """One thing wrong with the request."""

    field: str
    message: str


class ErrorDetail(BaseModel):
    """What went wrong, in vLLM's form. Never echoes the input."""

    message: str
    type: str = Field(description="Stable, for programs to match.")
    param: str | None = Field(description="The field at fault, where it is one.")
    code: int = Field(description="The status.")


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldProblem] = Field(default_factory=list)
    quota: Literal["requests", "tokens", "users"] | None = Field(None, description="Of a used-up quota: which one.")
    error: ErrorDetail | None = Field(None, description="The same for clients of vLLM: on /classify and /v1/models.")
    message: str | None = Field(None, description="The same for clients of Cohere and Jina: on the rerank paths.")
