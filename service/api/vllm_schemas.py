"""Bodies in vLLM's form, as the OpenAPI documents tell them: a worker's and the REST layer's."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.classify_request import ALL_THAT_FITS, MAX_SALT_LENGTH
from service.operations.texts import MAX_TURNS

_SALT: Final = (
    "Whose texts they are: texts with different salts share neither computation nor a cache, so that nobody learns "
    "from an answer's time what others sent. It has no other effect."
)


class ClassifyTexts(BaseModel):
    """Texts, each as token ids or as rendered by the client."""

    model: str | None = Field(None, description="As /v1/models names it; any other is refused.", examples=[None])
    input: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[Annotated[list[int], Field(min_length=1)]], Field(min_length=1)]
    ) = Field(description="A text, token ids, or a list of one of these. An id lies within the backbone's vocabulary.")
    add_special_tokens: bool = Field(
        True,
        description="Whether texts (not ids) get the tokenizer's special tokens; a BOS that is there is not doubled.",
    )
    use_activation: Literal[False] | None = Field(None, description="Base rewards have no activation.")
    truncate_prompt_tokens: None = Field(None, description="Nothing is shortened: a text that is too long gets 400.")
    cache_salt: str | None = Field(None, min_length=1, max_length=MAX_SALT_LENGTH, description=_SALT, examples=[None])


class ConversationMessage(BaseModel):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str


class ClassifyConversation(BaseModel):
    """One conversation, rendered by the backbone's own template."""

    model: str | None = Field(None, description="As /v1/models names it; any other is refused.", examples=[None])
    messages: list[ConversationMessage] = Field(
        min_length=2, max_length=MAX_TURNS, description="The prompt, and as the last one the assistant's completion."
    )
    use_activation: Literal[False] | None = Field(None, description="Base rewards have no activation.")
    truncate_prompt_tokens: None = Field(None, description="Nothing is shortened: a text that is too long gets 400.")
    cache_salt: str | None = Field(None, min_length=1, max_length=MAX_SALT_LENGTH, description=_SALT, examples=[None])


class ClassifiedText(BaseModel):
    """The answer for one text."""

    index: int = Field(ge=0, description="Its place in the request.")
    label: str = Field(description="The largest reward, as vLLM names it.")
    probs: list[float] = Field(description="Rewards, unrounded.")
    num_classes: int = Field(ge=1, description="How many there are.")


class Usage(BaseModel):
    """What the texts had together."""

    prompt_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)
    completion_tokens: Literal[0]


class ClassifyAnswer(BaseModel):
    """One entry a text, in order."""

    id: str
    object: Literal["list"]
    created: int = Field(description="Seconds since 1970.")
    model: str
    data: list[ClassifiedText]
    usage: Usage


_REWARD_MODEL: Final = (
    "NAME or NAME@USER: NAME is the name or the checkpoint_id of a loaded checkpoint, as /v1/models lists them, and "
    "USER whose reward is asked for. Without a user `probs` are the checkpoint's base rewards A h + b. Missing or "
    "empty: the checkpoint that answers /score."
)
_USER: Final = "Whose reward is asked for, in OpenAI's place for it; the same as in `model`, where that names one."
_TRUNCATE: Final = (
    f"{ALL_THAT_FITS}: a text that is too long loses its first tokens, as in vLLM with the truncation_side left. Left "
    "out, it gets 422."
)


class ClassifyTextsIn(ClassifyTexts):
    """Texts, each as token ids or as rendered by the client, used as they are."""

    model: str | None = Field(None, description=_REWARD_MODEL, examples=["demo@ada"])
    user: str | None = Field(None, description=_USER, examples=["ada"])
    truncate_prompt_tokens: Literal[-1] | None = Field(None, description=_TRUNCATE)  # type: ignore[assignment]
    truncation_side: Literal["left"] | None = Field(None, description="The end of a text always stays.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "input": ["Why is the sky blue?\n\nAir scatters blue light most."],
                    "user": "ada",
                    "use_activation": False,
                },
                {"model": "demo@ada", "input": "Why is the sky blue?\n\nIt is not."},
                {"model": "demo", "input": [[101, 7592, 102], [101, 2748, 1012, 102]]},
            ]
        }
    )


class ClassifyConversationIn(ClassifyConversation):
    """One conversation, rendered by the backbone's own template."""

    model: str | None = Field(None, description=_REWARD_MODEL, examples=["demo@ada"])
    user: str | None = Field(None, description=_USER, examples=["ada"])
    truncate_prompt_tokens: Literal[-1] | None = Field(None, description=_TRUNCATE)  # type: ignore[assignment]
    truncation_side: Literal["left"] | None = Field(None, description="The end of a text always stays.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "demo@ada",
                    "messages": [
                        {"role": "user", "content": "Why is the sky blue?"},
                        {"role": "assistant", "content": "Air scatters blue light most."},
                    ],
                }
            ]
        }
    )


class RewardModelOut(BaseModel):
    """A loaded checkpoint, in OpenAI's words."""

    id: str = Field(description="NAME. NAME@USER names a user's reward model, and is not listed.")
    object: Literal["model"]
    created: int = Field(description="When this process started, in seconds since 1970.")
    owned_by: str
    root: str = Field(description="The backbone.")
    parent: None
    max_model_len: int = Field(description="The longest text, in tokens.")


class RewardModelsOut(BaseModel):
    """Loaded checkpoints, the active one first."""

    object: Literal["list"]
    data: list[RewardModelOut]
