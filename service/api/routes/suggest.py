"""POST /users/{user_id}/suggest."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api.auth import RoleRoute, caller_of, needs
from service.api.deps import UserIdPath, limits_of, runtime_of
from service.api.errors import documented
from service.api.json_route import json_response
from service.api.messages import to_messages
from service.api.suggest_schemas import SuggestRequest, SuggestResponse
from service.operations.suggest import Candidate

router = APIRouter(tags=["users"], route_class=RoleRoute)


@router.post(
    "/users/{user_id:path}/suggest",
    response_model=SuggestResponse,
    responses=documented(404, 409, 413, 415, 421, 422, 500, 503),
    openapi_extra=needs("score"),
    summary="What to ask a user next",
)
async def suggest(request: Request, user_id: UserIdPath, body: SuggestRequest) -> Response:
    """Of all pairs of completions, those whose comparison by this user would tell most of their taste.

    The first is the best question; each further one is the best after the answers to those before it. What the user
    has compared already is not asked again. Show the two, and send the answer to /users/{user_id}/adapt as a pair, or
    what the user did to /users/{user_id}/feedback. 409 where the recipe that serves keeps no posterior: nothing is
    known then about what would tell more.
    """
    limits_of(request).check_suggest(user_id, body)
    answer = await runtime_of(request).suggest(
        caller_of(request).tenant_id,
        user_id,
        [
            Candidate(to_messages(candidate.prompt), candidate.completions, f"candidates[{i}].")
            for i, candidate in enumerate(body.candidates)
        ],
        count=body.count,
        min_version=body.min_version,
        truncate=body.truncate,
    )
    return json_response(
        {
            "user_id": answer.user_id,
            "user_state": answer.standing,
            "version": answer.version,
            "suggestions": [
                {
                    "candidate": question.candidate,
                    "a": question.a,
                    "b": question.b,
                    "information_gain_nats": question.gain_nats,
                    "preference_probability": question.preference_probability,
                }
                for question in answer.questions
            ],
            "truncated": answer.truncated,
            "checkpoint_id": answer.checkpoint_id,
            "timings_ms": answer.timings_ms,
        }
    )
