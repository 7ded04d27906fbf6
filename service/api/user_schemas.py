"""What a server knows of a user."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field


class UserOut(BaseModel):
    """A user's state."""

    user_id: str
    version: int
    checkpoint_id: str
    weights: list[float]
    pairs: int = Field(description="Pairs stored.")
    created_at: datetime
    updated_at: datetime


class UserPage(BaseModel):
    """Users in the order of their ids."""

    users: list[UserOut]
    next: str | None = Field(description="Pass it as `after` to get the next page; null on the last.")
