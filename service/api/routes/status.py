"""GET /info, /live and /ready."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api.auth import PUBLIC, RoleRoute, needs
from service.api.deps import runtime_of
from service.api.errors import documented
from service.api.json_route import json_response
from service.api.schemas import InfoOut, LiveOut, ReadyOut

router = APIRouter(tags=["status"], route_class=RoleRoute)


@router.get(
    "/info",
    response_model=InfoOut,
    responses=documented(421, 500),
    openapi_extra=needs("score"),
    summary="What this server serves",
)
async def info(request: Request) -> Response:
    """The checkpoint that answers, its backbone, what else is loaded, and limits."""
    return json_response(runtime_of(request).info())


@router.get(
    "/live", response_model=LiveOut, responses=documented(421), openapi_extra=PUBLIC, summary="Does the process run?"
)
async def live() -> Response:
    """Answers as long as the process runs."""
    return json_response({"live": True})


@router.get(
    "/ready",
    response_model=ReadyOut,
    responses={503: {"model": ReadyOut, "description": "Not ready: send no traffic."}, **documented(421)},
    openapi_extra=PUBLIC,
    summary="Can this process take traffic?",
)
async def ready(request: Request) -> Response:
    """200 while this process can take traffic. A shared dependency that is down is `degraded`, not unready."""
    readiness = await runtime_of(request).readiness()
    return json_response(
        {"ready": readiness.ready, "degraded": readiness.degraded}, status=200 if readiness.ready else 503
    )
