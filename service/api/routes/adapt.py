"""POST /users/{user_id}/adapt."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from service.api.auth import RoleRoute, caller_of, needs
from service.api.deps import UserIdPath, limits_of, runtime_of
from service.api.errors import documented
from service.api.evidence_schemas import AdaptRequest, AdaptResponse
from service.api.json_route import json_response
from service.api.messages import to_messages
from service.operations.adapt import PreferencePair

router = APIRouter(tags=["users"], route_class=RoleRoute)


@router.post(
    "/users/{user_id:path}/adapt",
    response_model=AdaptResponse,
    responses=documented(413, 415, 421, 422, 500, 503),
    openapi_extra=needs("adapt"),
    summary="Adapt a user to preference pairs",
)
async def adapt(
    request: Request,
    user_id: UserIdPath,
    body: AdaptRequest,
    idempotency_key: Annotated[
        str | None,
        Header(description="Any string of yours, new for each call: a repeated call gets the first one's answer."),
    ] = None,
) -> Response:
    """Store a user's choices and adapt their weights to all of them, at once.

    Everything is stored or nothing. The answer is durable: what it says survives the death of this server. Pairs are
    a set: their order does not matter, and the same pair sent again changes nothing.
    """
    runtime = runtime_of(request)
    limits_of(request).check_adapt(user_id, body, idempotency_key)
    pairs = [
        PreferencePair(to_messages(pair.prompt), pair.chosen, pair.rejected, pair.strength, pair.id)
        for pair in body.pairs
    ]
    adapted = await runtime.adapt(
        caller_of(request).tenant_id,
        user_id,
        pairs,
        mode=body.mode,
        truncate=body.truncate,
        idempotency_key=idempotency_key,
        body=await request.body(),
    )
    outcome, report = adapted.outcome, adapted.outcome.report
    return json_response(
        {
            "user_id": outcome.user_id,
            "version": outcome.version,
            "checkpoint_id": outcome.checkpoint_id,
            "weights": outcome.weights,
            "pairs_received": outcome.pairs_received,
            "pairs_stored": outcome.pairs_stored,
            "pairs_total": outcome.pairs_total,
            "support_before": {name: report[f"support_{name}_before"] for name in ("loss", "accuracy")},
            "support_after": {name: report[f"support_{name}_after"] for name in ("loss", "accuracy")},
            "replayed": outcome.replayed,
            "timings_ms": adapted.timings_ms,
        }
    )
