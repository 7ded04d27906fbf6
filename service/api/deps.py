"""What routes are given: the runtime of this process, its limits, and the caller."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Path, Request

from service.api.limits import Limits
from service.api.schemas import USER_ID_RULE
from service.runtime import Runtime

# Until there are keys, every caller on loopback is this tenant.
TENANT: Final = "default"

UserIdPath = Annotated[str, Path(description=f"Your name for the user. {USER_ID_RULE}.", examples=["ada"])]


def runtime_of(request: Request) -> Runtime:
    """The runtime that the application was built on."""
    runtime: Runtime = request.app.state.runtime
    return runtime


def limits_of(request: Request) -> Limits:
    """The bounds of one request."""
    limits: Limits = request.app.state.limits
    return limits
