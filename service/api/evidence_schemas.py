"""What a caller tells of a user, and what comes of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from service.api.schemas import NonBlank, Prompt, Strict


class PairIn(Strict):
    """One choice of the user: of two completions of a prompt, which was preferred."""

    prompt: Prompt
    chosen: NonBlank = Field(description="The completion that the user preferred.")
    rejected: NonBlank = Field(description="The other one; must differ from `chosen`.")
    strength: float | None = Field(
        None,
        gt=0,
        description="How strongly it was felt, on any scale of the user's own, such as the difference of two ratings; "
        "null for a plain choice. Only ratios to the user's other strengths count, each up to four times their median.",
    )
    id: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$")] | None = Field(
        None,
        description="Your name for the pair: 1 to 128 printable ASCII characters without spaces. "
        "The same pair sent again is stored once, with or without a name.",
    )

    @field_validator("rejected")
    @classmethod
    def _differs(cls, rejected: str, info: ValidationInfo) -> str:
        if rejected == info.data.get("chosen"):
            raise ValueError("equals chosen, which says nothing about taste; drop the pair")
        return rejected


class AdaptRequest(Strict):
    """A user's preference pairs."""

    pairs: list[PairIn] = Field(min_length=1)
    mode: Literal["append", "replace"] = Field(
        "append", description="`append` adds to the pairs that are stored; `replace` forgets those first."
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
                }
            ]
        }
    )


class SupportFit(BaseModel):
    """How well weights fit the user's own pairs, each counted once whatever its strength."""

    loss: float | None = Field(description="Mean Bradley-Terry loss in nats; 0.693 is a coin flip.")
    accuracy: float | None = Field(description="Share of pairs whose chosen side has the higher reward.")


class AdaptResponse(BaseModel):
    """The user's new version."""

    user_id: str
    version: int = Field(description="Pass it as `min_version` to /score to be sure that this adaptation counts.")
    checkpoint_id: str
    weights: list[float] = Field(description="Effective weights, K numbers.")
    pairs_received: int
    pairs_stored: int = Field(description="Of those received: new ones.")
    pairs_total: int = Field(description="Pairs that this user now has.")
    support_before: SupportFit = Field(description="The start's fit of all pairs used.")
    support_after: SupportFit = Field(description="The new weights' fit of the same pairs.")
    replayed: bool = Field(description="Whether this is the stored answer to an earlier call with the same key.")
    timings_ms: dict[str, float]
