"""What a caller tells of a user, and what comes of it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from service.api.schemas import NonBlank, Prompt, Strict

MAX_RANKED: Final = 64
"""Completions in one ranking."""

_RFC_3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})")
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _instant(value: Any) -> datetime:
    if not isinstance(value, str) or not _RFC_3339.fullmatch(value):
        raise ValueError("must be a time with its zone, as RFC 3339 has it: 2026-01-02T03:04:05Z")
    try:
        instant = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("is no time that there is; write it as 2026-01-02T03:04:05Z") from None
    if instant < _EARLIEST:
        raise ValueError("is before 1970; give the time at which the user said it")
    return instant


EventTime = Annotated[
    datetime | None,
    BeforeValidator(lambda value: None if value is None else _instant(value)),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]}),
    Field(
        description="When the user said it (RFC 3339, with its zone); null: now. Matters where older evidence counts "
        "less (HALF_LIFE), and where there is more than SUPPORT_LIMIT.",
        examples=["2026-01-02T03:04:05Z"],
    ),
]

EVIDENCE_ID_PATTERN: Final = r"^[!-~]{1,128}$"
EvidenceId = Annotated[str, StringConstraints(pattern=EVIDENCE_ID_PATTERN)]


class PairIn(Strict):
    """One choice of the user: of two completions of a prompt, which was preferred."""

    prompt: Prompt
    chosen: NonBlank = Field(description="The completion that the user preferred.")
    rejected: NonBlank = Field(description="The other one; must differ from `chosen`.")
    tie: bool = Field(
        False,
        description="The user likes both as much: `chosen` and `rejected` are just the two texts then, in any order.",
    )
    strength: float | None = Field(
        None,
        gt=0,
        description="How strongly it was felt, on any scale of the user's own, such as the difference of two ratings; "
        "null for a plain choice. Only ratios to the user's other strengths count, each up to four times their median.",
    )
    id: EvidenceId | None = Field(
        None,
        description="Your name for the pair: 1 to 128 printable ASCII characters without spaces. "
        "The same pair sent again is stored once, with or without a name.",
    )
    event_time: EventTime = None

    @field_validator("rejected")
    @classmethod
    def _differs(cls, rejected: str, info: ValidationInfo) -> str:
        if rejected == info.data.get("chosen"):
            raise ValueError("equals chosen, which says nothing about taste; drop the pair")
        return rejected

    @field_validator("strength")
    @classmethod
    def _not_of_a_tie(cls, strength: float | None, info: ValidationInfo) -> float | None:
        if strength is not None and info.data.get("tie"):
            raise ValueError("contradicts tie; leave one of them out")
        return strength


class RatingIn(Strict):
    """How much the user liked one completion, on a scale of their own."""

    prompt: Prompt
    completion: NonBlank = Field(description="What was rated.")
    rating: float = Field(
        description="The higher the better, on any scale of the user's own: stars, percents, points below zero. Only "
        "differences within a group count, relative to the spread of all of the user's ratings."
    )
    group: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = Field(
        None,
        description="Ratings are compared within a group only; null: with the others of this prompt. Groups of one "
        "rating are compared with each other.",
        examples=["session-7"],
    )
    id: EvidenceId | None = Field(None, description="Your name for the rating, as for a pair.")
    event_time: EventTime = None


class RankingIn(Strict):
    """Completions of one prompt in the order of the user's liking."""

    prompt: Prompt
    completions: list[NonBlank] = Field(
        min_length=2, max_length=MAX_RANKED, description="Different ones; the best first, unless `ranks` say otherwise."
    )
    ranks: list[Annotated[int, Field(ge=0, le=1_000_000)]] | None = Field(
        None,
        description="A rank for each completion, the lower the better; equal ranks are ties. Only their order counts.",
        examples=[[0, 1, 1]],
    )
    id: EvidenceId | None = Field(None, description="Your name for the ranking, as for a pair.")
    event_time: EventTime = None

    @field_validator("completions")
    @classmethod
    def _differ(cls, completions: list[str]) -> list[str]:
        if len(set(completions)) < len(completions):
            raise ValueError("has the same completion twice; rank each once")
        return completions

    @field_validator("ranks")
    @classmethod
    def _fit(cls, ranks: list[int] | None, info: ValidationInfo) -> list[int] | None:
        completions = info.data.get("completions")
        if ranks is None or completions is None:
            return ranks
        if len(ranks) != len(completions):
            raise ValueError(f"has {len(ranks)} ranks for {len(completions)} completions; give one for each")
        if len(set(ranks)) == 1:
            raise ValueError("are all equal, which orders nothing; send the ties as pairs with `tie`")
        return ranks


class AdaptRequest(Strict):
    """What a user has told: pairs, ratings, rankings, or any of them together; at least one."""

    pairs: list[PairIn] = Field(default_factory=list, description="Choices between two completions.")
    ratings: list[RatingIn] = Field(default_factory=list, description="Completions that were rated one by one.")
    rankings: list[RankingIn] = Field(default_factory=list, description="Completions that were put in order.")
    mode: Literal["append", "replace"] = Field(
        "append", description="`append` adds to what is stored; `replace` sets all of it aside first."
    )
    truncate: bool = Field(
        False, description="Shorten texts that the backbone cannot read whole, instead of refusing them."
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "pairs": [
                        {
                            "prompt": "How do I keep basil alive indoors?",
                            "chosen": "- Six hours of light\n- Water when dry\n- Pinch off flowers",
                            "rejected": "Basil, as you may perhaps know, is a plant that rather enjoys light...",
                        }
                    ]
                },
                {
                    "ratings": [
                        {"prompt": "Why is the sky blue?", "completion": "Scattering.", "rating": 4.5},
                        {"prompt": "Why is the sky blue?", "completion": "One may wonder...", "rating": 2},
                    ],
                    "rankings": [
                        {
                            "prompt": "How do I descale a kettle?",
                            "completions": ["Vinegar, an hour, rinse.", "There are many ways...", "Buy a new one."],
                            "ranks": [0, 1, 1],
                            "event_time": "2026-01-02T03:04:05Z",
                        }
                    ],
                },
            ],
            # Which of them is empty, or that all are missing, is told by the limits.
            "anyOf": [
                {"required": [kind], "properties": {kind: {"minItems": 1}}} for kind in ("pairs", "ratings", "rankings")
            ],
        }
    )


class SupportFit(BaseModel):
    """How well weights fit the user's own choices, each counted once whatever its strength.

    Those of rankings and those that ratings imply are among them; ties are not.
    """

    loss: float | None = Field(description="Mean Bradley-Terry loss in nats; 0.693 is a coin flip.")
    accuracy: float | None = Field(description="Share of choices whose better side has the higher reward.")


class ChangeResponse(BaseModel):
    """The user's new version."""

    user_id: str
    version: int = Field(description="Pass it as `min_version` to /score to be sure that this change counts.")
    cause: str = Field(description="What made it: adapt, replace, delete, rollback, reset, forget, feedback.")
    checkpoint_id: str
    weights: list[float] = Field(
        description="Effective weights, K numbers; none in a kept answer of a user of whom something was deleted since."
    )
    pairs_stored: int = Field(description="Pairs, ratings and rankings that count now and did not before.")
    pairs_deleted: int = Field(
        description="Those that counted before and do not any more; of a deletion those that are gone for good."
    )
    pairs_total: int = Field(description="Those that count now, and that this checkpoint can use.")
    carried: int = Field(description="Of those that were solved on: told under another checkpoint, carried to this.")
    left_out: int = Field(description="Those that count and that this checkpoint cannot use: told under another one.")
    exact: bool | None = Field(
        description="Of a rollback: whether the weights are those of the version gone back to, bit for bit; else null."
    )
    support_before: SupportFit = Field(description="The start's fit of all that was solved on.")
    support_after: SupportFit = Field(description="The new weights' fit of the same.")
    replayed: bool = Field(description="Whether this is the stored answer to an earlier call with the same key.")
    timings_ms: dict[str, float]


class AdaptResponse(ChangeResponse):
    """The user's new version."""

    pairs_received: int = Field(description="Pairs, ratings and rankings of this request.")
    evidence_ids: list[str] = Field(
        description="What each is listed and deleted by: its `id`, or the name made of its content; pairs, then "
        "ratings, then rankings, each in the order sent; of events what each left, in theirs."
    )
