"""The manifest of a checkpoint: strict, versioned JSON beside the tensors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT_VERSION = 2
"""2 added `rating_gain`; 1 is still read."""
LINKED_FORMAT_VERSION = 3
"""Of a checkpoint with maps; one without stays readable for the versions before."""

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


class MapRecord(_Strict):
    """A map from the heads of another checkpoint on the same backbone."""

    from_heads_id: HexDigest
    from_checkpoint_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    from_name: str
    fidelity: float = Field(ge=-1, le=1, description="Correlation of users' rewards before and after, mean over users.")
    fidelity_low: float = Field(ge=-1, le=1, description="The same of the user at the 5 % quantile.")
    differences_fidelity: float = Field(
        ge=-1, le=1, description="Correlation of mapped differences with measured ones, as users weigh them."
    )
    differences: Positive = Field(description="Differences that the map was fitted to.")
    held_out: Positive = Field(description="Other differences, that the fidelities were measured on.")
    data: str = Field(description="Name of the data set they are of.")
    file: str = Field(pattern=r"^map-[0-9a-f]{16}\.safetensors$")
    sha256: HexDigest


class Manifest(_Strict):
    """Everything about a checkpoint but its tensors."""

    format_version: Literal[1, 2, 3]
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
    maps: list[MapRecord] | None = Field(
        default=None, description="From which other checkpoints users are carried here."
    )
    training: dict[str, Any] = Field(default_factory=dict, description="How it was made: data, choices, seed, command.")

    @model_validator(mode="after")
    def _maps_have_their_format(self) -> Manifest:
        if (self.format_version == LINKED_FORMAT_VERSION) != bool(self.maps):
            raise ValueError(f"format_version is {LINKED_FORMAT_VERSION} where there are maps, and only there")
        return self
