"""What is sent: statements of users, events, texts to score. Frozen, checked when made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Prompt = str | list[dict[str, str]]
"""A text, or chat messages: ``[{"role": "user", "content": "..."}]``, of which the last is the user's."""

PromptLike = str | Sequence[Mapping[str, str]]
"""What a method takes as a `Prompt`."""


class RequestModel(BaseModel):
    """Base of all that is sent: frozen; unknown fields and numbers that are not finite are refused.

    Raises:
        pydantic.ValidationError: A ValueError that names each field that is wrong.
    """

    # Built when first used: most programs need few of them.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class ScoreItem(RequestModel):
    """Completions of one prompt, to be rewarded as one user would."""

    prompt: Prompt
    completions: list[str] = Field(min_length=1)
    user_id: str | None = None
    """None: nobody in particular, the population."""
    min_version: int = 0
    """Least version of the user to score with: `Change.version` of a change that must count."""


class Pair(RequestModel):
    """One choice of the user: of two completions of a prompt, which was preferred."""

    prompt: Prompt
    chosen: str
    rejected: str
    tie: bool = False
    """The user likes both as much."""
    strength: float | None = Field(None, gt=0)
    """How strongly it was felt, on any scale of the user's own; None for a plain choice."""
    id: str | None = None
    """Your name for it, to take it back by: 1 to 128 printable ASCII characters without spaces."""
    event_time: AwareDatetime | None = None
    """When the user said it, with its zone; None: now."""


class Rating(RequestModel):
    """How much the user liked one completion, on a scale of their own: the higher the better."""

    prompt: Prompt
    completion: str
    rating: float
    group: str | None = None
    """Ratings are compared within a group only; None: with the others of this prompt."""
    id: str | None = None
    """Your name for it, as for a pair."""
    event_time: AwareDatetime | None = None
    """When the user said it, with its zone; None: now."""


class Ranking(RequestModel):
    """Completions of one prompt in the order of the user's liking."""

    prompt: Prompt
    completions: list[str] = Field(min_length=2)
    """Different ones; the best first, unless `ranks` say otherwise."""
    ranks: list[int] | None = None
    """A rank for each completion, the lower the better; equal ranks are ties."""
    id: str | None = None
    """Your name for it, as for a pair."""
    event_time: AwareDatetime | None = None
    """When the user said it, with its zone; None: now."""

    @field_validator("ranks")
    @classmethod
    def _fit(cls, ranks: list[int] | None, info: ValidationInfo) -> list[int] | None:
        completions = info.data.get("completions")
        if ranks is not None and completions is not None and len(ranks) != len(completions):
            raise ValueError(f"has {len(ranks)} ranks for {len(completions)} completions; give one for each")
        return ranks


class _Event(RequestModel):
    prompt: Prompt
    id: str | None = None
    """Your name for the event: 1 to 120 printable ASCII characters without spaces."""
    event_time: AwareDatetime | None = None
    """When it happened, with its zone; None: now."""


class Chosen(_Event):
    """Of several completions the user took one."""

    type: Literal["chosen"] = "chosen"
    shown: list[str] = Field(min_length=2)
    """The completions that the user saw."""
    chosen: int = Field(ge=0)
    """Index of the one that they took."""


class Regenerated(_Event):
    """The user asked for another completion."""

    type: Literal["regenerated"] = "regenerated"
    completion: str
    """What they did not keep."""
    replacement: str | None = None
    """What they kept afterwards; None: unknown."""


class Copied(_Event):
    """The user copied a completion."""

    type: Literal["copied"] = "copied"
    completion: str
    shown: list[str] = []
    """The completions that the user saw, with or without this one; empty: it stood alone."""


class Edited(_Event):
    """The user changed a completion to what they wanted."""

    type: Literal["edited"] = "edited"
    completion: str
    """What they were given."""
    edited: str
    """What they made of it."""


class Read(RequestModel):
    """A completion that was in view for a time."""

    completion: str
    seconds: float = Field(ge=0)


class Dwell(_Event):
    """The user read completions of one prompt, for a time each."""

    type: Literal["dwell"] = "dwell"
    completion: str
    seconds: float = Field(ge=0)
    """Time in view; only ratios count."""
    shown: list[Read] = Field(min_length=1)
    """The others, read for a time too."""


class Thumbs(_Event):
    """The user gave a thumbs up or down."""

    type: Literal["thumbs"] = "thumbs"
    completion: str
    up: bool
    shown: list[str] = []
    """The completions that the user saw, with or without this one; empty: it stood alone."""


Event = Annotated[
    Chosen | Regenerated | Copied | Edited | Dwell | Thumbs,
    Field(discriminator="type"),
]
"""Something that a user was seen doing."""


class Candidate(RequestModel):
    """Completions of one prompt, any two of which could be shown to the user."""

    prompt: Prompt
    completions: list[str] = Field(min_length=2)


class AdaptRequest(RequestModel):
    """Body of POST /users/{user_id}/adapt."""

    pairs: list[Pair] = []
    ratings: list[Rating] = []
    rankings: list[Ranking] = []
    mode: Literal["append", "replace"] = "append"
    truncate: bool = False


class FeedbackRequest(RequestModel):
    """Body of POST /users/{user_id}/feedback."""

    events: list[Event] = Field(min_length=1)
    truncate: bool = False


class ScoreRequest(ScoreItem):
    """Body of POST /score for one prompt."""

    truncate: bool = False
    return_base_rewards: bool = False
    return_pairwise: bool = False


class SuggestRequest(RequestModel):
    """Body of POST /users/{user_id}/suggest."""

    candidates: list[Candidate] = Field(min_length=1)
    count: int = Field(1, ge=1)
    min_version: int = Field(0, ge=0)
    truncate: bool = False


class RerankRequest(RequestModel):
    """Body of POST /v2/rerank."""

    query: str
    documents: list[str] = Field(min_length=1)
    top_n: int | None = Field(None, ge=1)
    user: str | None = None
    model: str | None = None


class RollbackRequest(RequestModel):
    """Body of POST /users/{user_id}/rollback."""

    version: int = Field(ge=1)


class ResetRequest(RequestModel):
    """Body of POST /users/{user_id}/reset."""

    forget: bool = False


JsonObject = dict[str, Any]
"""Any JSON object."""
