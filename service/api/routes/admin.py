"""POST /admin/self-check."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api.auth import RoleRoute, needs
from service.api.deps import runtime_of
from service.api.errors import documented
from service.api.json_route import json_response
from service.api.schemas import SelfCheckOut, SelfCheckRequest

router = APIRouter(tags=["admin"], route_class=RoleRoute)


@router.post(
    "/admin/self-check",
    response_model=SelfCheckOut,
    responses=documented(413, 415, 421, 422, 500, 503),
    openapi_extra=needs("admin"),
    summary="Does the engine give the recorded numbers?",
)
async def self_check(request: Request, body: SelfCheckRequest) -> Response:
    """Let every worker score the golden texts in company, one by one, and beside the checkpoint's record.

    It takes its turn in the engine's queue; calls at the same time, or within a second of its end, share one check.
    200 whatever it finds. Where the engine of this process fails, /ready says no until a later check passes; a remote
    worker that fails is taken out until it passes.
    """
    report = await runtime_of(request).self_checks()
    return json_response(report.as_json())
