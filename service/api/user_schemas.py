"""What a server knows of a user, and what may be done with it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.evidence_schemas import EvidenceId
from service.api.schemas import Strict

MAX_DELETED = 100
"""Ids in one request to delete evidence."""


class UserListed(BaseModel):
    """A user's state."""

    user_id: str
    version: int
    checkpoint_id: str
    weights: list[float]
    pairs: int = Field(description="Pairs, ratings and rankings that count.")
    carried: str | None = Field(
        description="How these weights came to their checkpoint, where an operator carried them there (exact, linear), "
        "or what was said before was measured anew since (retained, linear); null: they were solved for when the user "
        "last said something."
    )
    created_at: datetime
    updated_at: datetime


class UserOut(UserListed):
    """A user's state, and whether their taste changes."""

    drift: float | None = Field(
        description="Nats per recent choice by which forgetting what is old predicts this user better; 0: taste is as "
        "before; null: too little was said to tell."
    )
    half_life_days: float | None = Field(
        description="Age at which evidence of this user counts half (HALF_LIFE); null: age does not matter."
    )


class UserPage(BaseModel):
    """Users in the order of their ids."""

    users: list[UserListed]
    next: str | None = Field(description="Pass it as `after` to get the next page; null on the last.")


class VersionOut(BaseModel):
    """One version of a user that is kept."""

    version: int
    cause: str = Field(description="What made it: adapt, replace, delete, rollback, reset, forget, feedback.")
    checkpoint_id: str
    pairs: int = Field(description="Pairs, ratings and rankings that counted.")
    created_at: datetime
    current: bool = Field(description="Whether it is the one that serves.")


class VersionPage(BaseModel):
    """Versions of a user, the newest first."""

    versions: list[VersionOut]
    next: int | None = Field(description="Pass it as `before` to get the next page; null on the last.")


class RollbackRequest(Strict):
    """Which version to go back to."""

    version: int = Field(ge=1, le=2**53, description="A version that is kept: GET /users/{user_id}/versions.")

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 1}]})


class ResetRequest(Strict):
    """How much to set aside."""

    forget: bool = Field(
        False,
        description="false: nothing counts any more, and a rollback brings it back while the version before is kept. "
        "true: all that the user said is deleted for good.",
    )

    model_config = ConfigDict(json_schema_extra={"examples": [{"forget": False}]})


class RetainedTexts(BaseModel):
    """The texts that the user judged; kept with RETENTION=texts only."""

    messages: list[dict[str, str]]
    completions: list[str] = Field(
        description="Of a pair the chosen one first; of a ranking the best first, as `ranks`."
    )


class EvidenceOut(BaseModel):
    """One thing that the user said."""

    id: str
    kind: Literal["pair", "rating", "ranking"]
    strength: float | None = Field(description="Of a pair, where it has one.")
    tie: bool
    rating: float | None = Field(description="Of a rating.")
    ranks: list[int] | None = Field(
        description="Of a ranking: places, 0 is the best, equal is tied; best first, not as sent."
    )
    weight: float = Field(description="What it counts, before its age.")
    source: str | None = Field(description="The kind of feedback that it was read from; null: said outright.")
    event_time: datetime
    heads_id: str = Field(description="The base reward heads that it was measured with.")
    live: bool = Field(description="Whether it counts; what was replaced or reset does not, until it is rolled back.")
    texts: RetainedTexts | None = Field(description="What it was said of, where texts are kept.")


class EvidencePage(BaseModel):
    """What a user said, in the order of ids."""

    evidence: list[EvidenceOut]
    next: str | None = Field(description="Pass it as `after` to get the next page; null on the last.")


class Numbers(BaseModel):
    """Numbers as little-endian float32 bytes in base64, row by row."""

    shape: list[int]
    base64: str


class ExportedEvidence(EvidenceOut):
    """One thing that the user said, with all that is stored of it."""

    content_key: str = Field(description="Keyed digest of what was said, hexadecimal.")
    group: str | None = Field(description="Of a rating: keyed digest of what it is compared with, hexadecimal.")
    tilt: float
    base_rewards: list[float] | list[list[float]] = Field(
        description="Of a pair chosen minus rejected, K numbers; of a rating K; of a ranking K for each text, best "
        "first."
    )
    hidden_states: Numbers | None = Field(description="Of each text, where hidden states are kept.")


class ExportedUser(UserListed):
    """The user's state."""

    heads_id: str
    posterior_factor: list[float] | None = Field(
        description="Lower Cholesky factor of the posterior covariance of the weights, by rows: K (K + 1) / 2 numbers."
    )


class ExportedVersion(VersionOut):
    """One version that is kept."""

    heads_id: str
    weights: list[float] | None = Field(description="Null where something that they were made from is deleted.")


class ExportedAnswer(BaseModel):
    """An answer that is kept for an Idempotency-Key."""

    idempotency_key: str
    expires_at: datetime
    answer: dict[str, Any]


class UserExport(BaseModel):
    """Everything that is stored of one user, as of one moment. Caches hold nothing else of them."""

    format: Literal["metareward-user-1"]
    user: ExportedUser
    evidence: list[ExportedEvidence]
    versions: list[ExportedVersion]
    answers: list[ExportedAnswer]


EvidenceIds = Annotated[list[EvidenceId], Field(min_length=1, max_length=MAX_DELETED)]
