"""GET and DELETE /users/{user_id}/evidence, GET /users/{user_id}/export."""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.api.auth import RoleRoute, caller_of, needs
from service.api.changed import IdempotencyKey, changed_response
from service.api.deps import UserIdPath, runtime_of
from service.api.errors import documented
from service.api.evidence_schemas import ChangeResponse, EvidenceId
from service.api.json_route import json_response
from service.api.limits import check_change, check_user_id
from service.api.told import evidence_out, export_parts
from service.api.user_schemas import MAX_DELETED, EvidencePage, UserExport
from service.operations.changes import idempotency_of

router = APIRouter(tags=["users"], route_class=RoleRoute)


@router.get(
    "/users/{user_id:path}/evidence",
    response_model=EvidencePage,
    responses=documented(404, 421, 422, 500, 503),
    openapi_extra=needs("adapt"),
    summary="What a user said",
)
async def list_evidence(
    request: Request,
    user_id: UserIdPath,
    after: Annotated[EvidenceId | None, Query(description="`next` of the page before.", examples=["pair-7"])] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Items on a page.", examples=[100])] = 100,
) -> Response:
    """Pairs, ratings and rankings of a user, those that do not count any more included, in the order of their ids.

    Texts are among them only where the server keeps them (RETENTION=texts).
    """
    check_user_id(user_id)
    page, following = await runtime_of(request).users.evidence(caller_of(request).tenant_id, user_id, after, limit)
    return json_response({"evidence": [evidence_out(*each) for each in page], "next": following})


@router.delete(
    "/users/{user_id:path}/evidence",
    response_model=ChangeResponse,
    responses=documented(404, 421, 422, 500, 503),
    openapi_extra=needs("adapt"),
    summary="Take back what a user said",
)
async def delete_evidence(
    request: Request,
    user_id: UserIdPath,
    ids: Annotated[
        list[EvidenceId],
        Query(
            alias="id",
            min_length=1,
            max_length=MAX_DELETED,
            description="What to delete, one `id=` for each. Who gave none finds them in the list of evidence.",
            examples=[["pair-7"]],
        ),
    ],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Delete pairs, ratings and rankings for good, with all that was computed from them, and solve without them.

    All of them or none: an id under which nothing is stored is named, and nothing is deleted then. No rollback brings
    them back, and the weights of earlier versions, which were made from them, are deleted, too.
    """
    check_change(user_id, idempotency_key)
    changed = await runtime_of(request).changes.delete(
        caller_of(request).tenant_id,
        user_id,
        ids,
        idempotency_of(idempotency_key, "delete", orjson.dumps(sorted(set(ids)))),
    )
    return changed_response(changed)


@router.get(
    "/users/{user_id:path}/export",
    response_model=UserExport,
    responses=documented(404, 421, 422, 500, 503),
    openapi_extra=needs("adapt"),
    summary="Everything that is stored of a user",
)
async def export(request: Request, user_id: UserIdPath) -> Response:
    """One document with all that is stored of a user, as of one moment: state, evidence, versions, kept answers."""
    check_user_id(user_id)
    exported = await runtime_of(request).users.export(caller_of(request).tenant_id, user_id)
    return StreamingResponse(export_parts(exported), media_type="application/json")
