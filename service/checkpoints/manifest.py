"""The manifest of a checkpoint: strict, versioned JSON beside the tensors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION = 2
"""2 added `rating_gain`; 1 is still read."""

Positive = Annotated[int, Field(gt=0)]
HexDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BackboneIdentity(_Strict):
    """The backbone whose hidden states the heads were trained on."""

    id: str = Field(description="What the backbone was loaded as: `minilm`, a hub id or a path.")
    fingerprint: str = Field(description="Digest of its configuration, tokenizer and weights.")
    template_id: str = Field(description="Digest of how a prompt and a completion become token ids.")
    hidden_size: Positive = Field(description="D.")


class Golden(_Strict):
    """Base rewards of the golden texts, as recorded in training."""

    texts_id: HexDigest
    dtype: Literal["float32", "bfloat16", "float8"] = Field(
        default="float32", description="What they were computed in."
    )
    base_rewards: list[list[float]]


class Manifest(_Strict):
    """Everything about a checkpoint but its tensors."""

    format_version: Literal[1, 2]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    recipe: Literal["map", "softmax_adam"]
    heads: Positive = Field(description="K.")
    backbone: BackboneIdentity
    heads_id: HexDigest
    tensors_sha256: HexDigest
    temperature: float | None = Field(default=None, gt=0)
    rating_gain: float | None = Field(
        default=None, gt=0, description="Logits that one standard deviation of a person's own ratings is worth."
    )
    inner_lr: float | None = Field(default=None, gt=0)
    inner_steps: int | None = Field(default=None, ge=0)
    golden: Golden | None = None
    training: dict[str, Any] = Field(default_factory=dict, description="How it was made: data, choices, seed, command.")
