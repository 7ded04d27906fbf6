"""POST /users/{user_id}/adapt."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api.auth import RoleRoute, caller_of, needs
from service.api.changed import IdempotencyKey, adapted_response
from service.api.deps import UserIdPath, limits_of, runtime_of
from service.api.errors import documented
from service.api.evidence_schemas import AdaptRequest, AdaptResponse
from service.api.messages import to_messages
from service.operations.said import PreferencePair, Ranking, Rating, Statement

router = APIRouter(tags=["users"], route_class=RoleRoute)


@router.post(
    "/users/{user_id:path}/adapt",
    response_model=AdaptResponse,
    responses=documented(404, 413, 415, 421, 422, 500, 503),
    openapi_extra=needs("adapt"),
    summary="Adapt a user to what they said",
)
async def adapt(
    request: Request, user_id: UserIdPath, body: AdaptRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """Store a user's choices, ratings and rankings, and adapt their weights to all of them, at once.

    Everything is stored or nothing. The answer is durable: what it says survives the death of this server. What a
    user said is a set: its order does not matter, and the same sent again changes nothing.
    """
    limits_of(request).check_adapt(user_id, body, idempotency_key)
    changed = await runtime_of(request).adapt(
        caller_of(request).tenant_id,
        user_id,
        _said(body),
        mode=body.mode,
        truncate=body.truncate,
        idempotency_key=idempotency_key,
        body=await request.body(),
    )
    return adapted_response(changed)


def _said(body: AdaptRequest) -> list[tuple[str, Statement]]:
    """Statements, each behind its path in the request."""
    pairs = [
        PreferencePair(to_messages(p.prompt), p.chosen, p.rejected, p.strength, p.id, p.tie, p.event_time)
        for p in body.pairs
    ]
    ratings = [Rating(to_messages(r.prompt), r.completion, r.rating, r.group, r.id, r.event_time) for r in body.ratings]
    rankings = [Ranking(to_messages(r.prompt), r.completions, r.ranks, r.id, r.event_time) for r in body.rankings]
    return [
        *((f"pairs[{i}]", pair) for i, pair in enumerate(pairs)),
        *((f"ratings[{i}]", rating) for i, rating in enumerate(ratings)),
        *((f"rankings[{i}]", ranking) for i, ranking in enumerate(rankings)),
    ]
