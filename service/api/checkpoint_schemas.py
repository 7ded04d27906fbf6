"""Bodies of `/admin/checkpoints`."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas import Strict

CHECKPOINT_ID_PATTERN = r"^[0-9a-f]{16}$"


class ActivateRequest(Strict):
    """Which checkpoint is to answer."""

    checkpoint_id: str = Field(
        pattern=CHECKPOINT_ID_PATTERN, description="One that is loaded.", examples=["1f3a5c7e9b2d4f60"]
    )

    model_config = ConfigDict(json_schema_extra={"examples": [{"checkpoint_id": "1f3a5c7e9b2d4f60"}]})


class CheckpointRollbackRequest(Strict):
    """Nothing to choose: send {}."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})


class ShadowRequest(Strict):
    """Which checkpoint is to score beside the active one."""

    checkpoint_id: str | None = Field(
        pattern=CHECKPOINT_ID_PATTERN,
        description="One that is loaded and not active; null: none.",
        examples=["1f3a5c7e9b2d4f60"],
    )

    model_config = ConfigDict(json_schema_extra={"examples": [{"checkpoint_id": None}]})


class MapOut(BaseModel):
    """A map that carries what users said from other heads."""

    from_name: str
    from_checkpoint_id: str
    from_heads_id: str
    fidelity: float = Field(description="Correlation of users' rewards before and after, mean over users.")
    fidelity_low: float = Field(description="The same of the user at the 5 % quantile.")
    differences_fidelity: float = Field(description="Correlation of mapped differences with measured ones.")
    used: bool = Field(description="Whether `fidelity` reaches MIN_FIDELITY; otherwise nobody is carried by it.")


class AgreementOut(BaseModel):
    """How a shadow agrees with the checkpoint that answers, on requests of this process; null before the first."""

    items: int = Field(description="Items of two completions or more that both scored.")
    same_best: float | None = Field(description="Share of them with the same best completion.")
    kendall_tau: float | None = Field(description="Over pairs of completions that both order: 1 alike, -1 reversed.")
    probability_difference: float | None = Field(
        description="Mean absolute difference of probabilities of preference, over pairs."
    )
    dropped: int = Field(description="Requests that were not compared, because too many others were.")
    failed: int = Field(description="Requests that the shadow could not score.")


class CheckpointOut(BaseModel):
    """A loaded checkpoint."""

    checkpoint_id: str
    name: str
    heads_id: str
    heads: int = Field(description="K.")
    recipe: str = Field(description="map: of `train --recipe eb`, with a posterior; softmax_adam: of `mrm`, without.")
    backbone: str
    active: bool = Field(description="Whether it answers on this server.")
    shadow: bool = Field(description="Whether it scores beside the one that answers.")
    previous: bool = Field(description="Whether a rollback would let it answer.")
    healthy: bool = Field(description="Whether its engine answers.")
    maps: list[MapOut]
    agreement: AgreementOut | None = Field(description="Of the shadow; null of others.")


class CheckpointsOut(BaseModel):
    """What is loaded here, and what all servers on this database are to answer with."""

    active: str = Field(description="The checkpoint that all are to answer with.")
    generation: int = Field(description="Grows with every change; 0 while nothing was ever activated.")
    changed_at: datetime | None = Field(description="When it last changed.")
    checkpoints: list[CheckpointOut]
