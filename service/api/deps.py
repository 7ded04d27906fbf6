"""What routes are given: the runtime of this process and its limits."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Request

from service.api.limits import Limits
from service.api.schemas import USER_ID_RULE
from service.runtime import Runtime

UserIdPath = Annotated[str, Path(description=f"Your name for the user. {USER_ID_RULE}.", examples=["ada"])]


def runtime_of(request: Request) -> Runtime:
    """The runtime that the application was built on."""
    runtime: Runtime = request.app.state.runtime
    return runtime


def limits_of(request: Request) -> Limits:
    """The bounds of one request."""
    limits: Limits = request.app.state.limits
    return limits
