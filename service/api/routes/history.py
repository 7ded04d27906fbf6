"""GET /users/{user_id}/versions, POST /users/{user_id}/rollback and /reset."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.api.auth import RoleRoute, caller_of, needs
from service.api.changed import IdempotencyKey, changed_response
from service.api.deps import UserIdPath, runtime_of
from service.api.errors import documented
from service.api.evidence_schemas import ChangeResponse
from service.api.json_route import json_response
from service.api.limits import check_change, check_user_id
from service.api.told import version_out
from service.api.user_schemas import ResetRequest, RollbackRequest, VersionPage
from service.operations.changes import idempotency_of

router = APIRouter(tags=["users"], route_class=RoleRoute)


@router.get(
    "/users/{user_id:path}/versions",
    response_model=VersionPage,
    responses=documented(404, 421, 422, 500, 503),
    openapi_extra=needs("adapt"),
    summary="What a user could be rolled back to",
)
async def versions(
    request: Request,
    user_id: UserIdPath,
    before: Annotated[int | None, Query(ge=1, le=2**53, description="`next` of the page before.", examples=[7])] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Versions on a page.", examples=[100])] = 100,
) -> Response:
    """The user's present version and those before it that are kept (HISTORY_VERSIONS), the newest first."""
    check_user_id(user_id)
    kept, following = await runtime_of(request).users.versions(caller_of(request).tenant_id, user_id, before, limit)
    return json_response({"versions": [version_out(version) for version in kept], "next": following})


@router.post(
    "/users/{user_id:path}/rollback",
    response_model=ChangeResponse,
    responses=documented(404, 409, 413, 415, 421, 422, 500, 503),
    openapi_extra=needs("adapt"),
    summary="Undo changes of a user",
)
async def rollback(
    request: Request, user_id: UserIdPath, body: RollbackRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """Let exactly that count again which counted in an earlier version, in a new version.

    What was replaced or reset since comes back, what came since is set aside; what was deleted stays deleted. The
    weights are solved for anew: `exact` says whether they are those of that version bit for bit, as they are unless
    something was deleted or another checkpoint serves.
    """
    check_change(user_id, idempotency_key)
    changed = await runtime_of(request).changes.rollback(
        caller_of(request).tenant_id,
        user_id,
        body.version,
        idempotency_of(idempotency_key, "rollback", await request.body()),
    )
    return changed_response(changed)


@router.post(
    "/users/{user_id:path}/reset",
    response_model=ChangeResponse,
    responses=documented(404, 413, 415, 421, 422, 500, 503),
    openapi_extra=needs("adapt"),
    summary="Start a user anew",
)
async def reset(
    request: Request, user_id: UserIdPath, body: ResetRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """Set aside all that a user said: the start's weights, in a new version.

    Unlike deleting the user this keeps the version counting, so that every replica and `min_version` know of it.
    """
    check_change(user_id, idempotency_key)
    changed = await runtime_of(request).changes.reset(
        caller_of(request).tenant_id,
        user_id,
        body.forget,
        idempotency_of(idempotency_key, "reset", await request.body()),
    )
    return changed_response(changed)
