"""POST /users/{user_id}/feedback."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api.auth import RoleRoute, caller_of, needs
from service.api.changed import IdempotencyKey, adapted_response
from service.api.deps import UserIdPath, limits_of, runtime_of
from service.api.errors import documented
from service.api.feedback_schemas import (
    DwellEvent,
    EventIn,
    FeedbackRequest,
    FeedbackResponse,
    RegeneratedEvent,
    ThumbsEvent,
)
from service.api.messages import to_messages
from service.operations.feedback_events import FeedbackEvent

router = APIRouter(tags=["users"], route_class=RoleRoute)


@router.post(
    "/users/{user_id:path}/feedback",
    response_model=FeedbackResponse,
    responses=documented(404, 413, 415, 421, 422, 500, 503),
    openapi_extra=needs("adapt"),
    summary="Adapt a user to what they were seen doing",
)
async def feedback(
    request: Request, user_id: UserIdPath, body: FeedbackRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """Store what a user did with completions as comparisons, and adapt their weights to all that is known of them.

    Each kind of event counts as much as it can be trusted (`FEEDBACK_NOISE_...`), and never beside what the user said
    of the same comparison outright. Everything is stored or nothing, as in /users/{user_id}/adapt; the evidence is
    listed and deleted like any other, under the name of its source.
    """
    limits_of(request).check_feedback(user_id, body, idempotency_key)
    changed = await runtime_of(request).feedback(
        caller_of(request).tenant_id,
        user_id,
        [_event(f"events[{i}]", event) for i, event in enumerate(body.events)],
        truncate=body.truncate,
        idempotency_key=idempotency_key,
        body=await request.body(),
    )
    return adapted_response(
        changed,
        events_received=len(body.events),
        stored_by_source=changed.outcome.stored_by_source or {},
    )


def _event(field: str, event: EventIn) -> FeedbackEvent:
    seconds = [event.seconds, *(read.seconds for read in event.shown)] if isinstance(event, DwellEvent) else None
    return FeedbackEvent(
        source=event.type,
        messages=to_messages(event.prompt),
        completions=[text for _, text in event.texts],
        favours=event.up if isinstance(event, ThumbsEvent) else not isinstance(event, RegeneratedEvent),
        fields=[f"{field}.{part}" for part, _ in event.texts],
        field=field,
        seconds=seconds,
        id=event.id,
        event_time=event.event_time,
    )
