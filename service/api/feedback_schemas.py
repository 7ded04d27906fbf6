"""What a user was seen doing: events, and what comes of them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Discriminator, Field, StringConstraints, Tag, ValidationInfo, field_validator

from service.api.evidence_schemas import MAX_RANKED, AdaptResponse, EventTime
from service.api.schemas import NonBlank, Prompt, Strict

MAX_SECONDS: Final = 86_400.0

# Shorter than the id of an evidence: one event may leave several, numbered.
EVENT_ID_PATTERN: Final = r"^[!-~]{1,120}$"
EventId = Annotated[str, StringConstraints(pattern=EVENT_ID_PATTERN)]


class _Event(Strict):
    """What all events have. `texts` are the completions, the one acted on first, each with where it stands."""

    prompt: Prompt
    id: EventId | None = Field(
        None,
        description="Your name for the event: 1 to 120 printable ASCII characters without spaces. The same event sent "
        "again is stored once, with or without a name.",
    )
    event_time: EventTime = None


Shown = Annotated[
    list[NonBlank],
    Field(
        max_length=MAX_RANKED,
        description="The completions that the user saw, with or without this one; empty: it stood alone, and is "
        "compared with the average text.",
    ),
]


def _each_once(completions: list[str]) -> list[str]:
    if len(set(completions)) < len(completions):
        raise ValueError("has the same completion twice; send each once")
    return completions


class ChosenEvent(_Event):
    """Of several completions the user took one."""

    type: Literal["chosen"]
    shown: list[NonBlank] = Field(min_length=2, max_length=MAX_RANKED, description="The completions that they saw.")
    chosen: int = Field(ge=0, description="Index of the one that they took.", examples=[0])

    _differ = field_validator("shown")(_each_once)

    @field_validator("chosen")
    @classmethod
    def _among(cls, chosen: int, info: ValidationInfo) -> int:
        shown = info.data.get("shown")
        if shown is not None and chosen >= len(shown):
            raise ValueError(f"is no index of shown, which has {len(shown)}; the first is 0")
        return chosen

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The chosen one, then the others."""
        order = [self.chosen, *(i for i in range(len(self.shown)) if i != self.chosen)]
        return [(f"shown[{i}]", self.shown[i]) for i in order]


class RegeneratedEvent(_Event):
    """The user asked for another completion."""

    type: Literal["regenerated"]
    completion: NonBlank = Field(description="What they did not keep.")
    replacement: NonBlank | None = Field(
        None, description="What they kept afterwards; null: unknown, and the completion is compared with the average."
    )

    @field_validator("replacement")
    @classmethod
    def _differs(cls, replacement: str | None, info: ValidationInfo) -> str | None:
        if replacement is not None and replacement == info.data.get("completion"):
            raise ValueError("equals completion, which says nothing about taste; drop the event")
        return replacement

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The completion, then the replacement, if there is one."""
        after = [] if self.replacement is None else [("replacement", self.replacement)]
        return [("completion", self.completion), *after]


class _ActOnOne(_Event):
    completion: NonBlank = Field(description="What they did it to.")
    shown: Shown = Field(default_factory=list)

    _differ = field_validator("shown")(_each_once)

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The completion, then what it stood beside."""
        others = [(f"shown[{i}]", other) for i, other in enumerate(self.shown) if other != self.completion]
        return [("completion", self.completion), *others]


class CopiedEvent(_ActOnOne):
    """The user copied a completion."""

    type: Literal["copied"]


class EditedEvent(_Event):
    """The user changed a completion to what they wanted."""

    type: Literal["edited"]
    completion: NonBlank = Field(description="What they were given.")
    edited: NonBlank = Field(description="What they made of it; must differ.")

    @field_validator("edited")
    @classmethod
    def _differs(cls, edited: str, info: ValidationInfo) -> str:
        if edited == info.data.get("completion"):
            raise ValueError("equals completion, which says nothing about taste; drop the event")
        return edited

    @property
    def texts(self) -> list[tuple[str, str]]:
        """What they made of it, then what they were given."""
        return [("edited", self.edited), ("completion", self.completion)]


Seconds = Annotated[
    float,
    Field(
        ge=0, le=MAX_SECONDS, description="Time in view. Only ratios count: divide by the length, if lengths differ."
    ),
]


class Read(Strict):
    """A completion that was in view for a time."""

    completion: NonBlank
    seconds: Seconds


class DwellEvent(_Event):
    """The user read completions of one prompt, for a time each."""

    type: Literal["dwell"]
    completion: NonBlank = Field(description="What they read.")
    seconds: Seconds
    shown: list[Read] = Field(
        min_length=1,
        max_length=MAX_RANKED - 1,
        description="The others, read for a time too: a time alone says nothing.",
    )

    @field_validator("shown")
    @classmethod
    def _others(cls, shown: list[Read], info: ValidationInfo) -> list[Read]:
        _each_once([read.completion for read in shown])
        if any(read.completion == info.data.get("completion") for read in shown):
            raise ValueError("holds the completion itself; list only the others")
        return shown

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The completion, then the others."""
        others = [(f"shown[{i}].completion", read.completion) for i, read in enumerate(self.shown)]
        return [("completion", self.completion), *others]


class ThumbsEvent(_ActOnOne):
    """The user gave a thumbs up or down."""

    type: Literal["thumbs"]
    up: bool = Field(description="Up, or down.", examples=[True])


def _tag(event: Any) -> str | None:
    kind = event.get("type") if isinstance(event, dict) else getattr(event, "type", None)
    return f"event-{kind}" if isinstance(kind, str) else None


# A tag of its own for each: a bad event is judged as what it says that it is.
EventIn = Annotated[
    Annotated[ChosenEvent, Tag("event-chosen")]
    | Annotated[RegeneratedEvent, Tag("event-regenerated")]
    | Annotated[CopiedEvent, Tag("event-copied")]
    | Annotated[EditedEvent, Tag("event-edited")]
    | Annotated[DwellEvent, Tag("event-dwell")]
    | Annotated[ThumbsEvent, Tag("event-thumbs")],
    Discriminator(
        _tag,
        custom_error_type="event_type",
        custom_error_message="must have a `type`: chosen, regenerated, copied, edited, dwell or thumbs",
    ),
]


class FeedbackRequest(Strict):
    """What a user was seen doing."""

    events: list[EventIn] = Field(min_length=1, description="In any order.")
    truncate: bool = Field(
        False, description="Shorten texts that the backbone cannot read whole, instead of refusing them."
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "events": [
                        {
                            "type": "chosen",
                            "prompt": "How do I descale a kettle?",
                            "shown": ["Vinegar, an hour, rinse.", "There are, perhaps, many ways...", "Buy a new one."],
                            "chosen": 0,
                        },
                        {
                            "type": "copied",
                            "prompt": "Why is the sky blue?",
                            "completion": "Air scatters blue light most.",
                            "event_time": "2026-01-02T03:04:05Z",
                        },
                        {
                            "type": "dwell",
                            "prompt": "Why do cats purr?",
                            "completion": "Mostly when content.",
                            "seconds": 21.5,
                            "shown": [{"completion": "Aww, I love cats! Well...", "seconds": 4.0}],
                        },
                    ]
                }
            ]
        }
    )


class FeedbackResponse(AdaptResponse):
    """The user's new version, and what the events left."""

    events_received: int = Field(description="Events of this request; one may leave several comparisons.")
    stored_by_source: dict[str, int] = Field(
        description="Comparisons that are new, by what they were read from; they sum to `pairs_stored`."
    )
