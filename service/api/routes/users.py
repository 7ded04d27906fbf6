"""GET /users, GET and DELETE /users/{user_id}."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.api.auth import RoleRoute, caller_of, needs
from service.api.deps import UserIdPath, runtime_of
from service.api.errors import documented
from service.api.json_route import json_response
from service.api.limits import check_user_id
from service.api.told import user_out
from service.api.user_schemas import UserOut, UserPage
from service.operations.solving import DAY_S

router = APIRouter(tags=["users"], route_class=RoleRoute)


@router.get(
    "/users",
    response_model=UserPage,
    responses=documented(421, 422, 500, 503),
    openapi_extra=needs("adapt"),
    summary="List users",
)
async def list_users(
    request: Request,
    after: Annotated[str | None, Query(description="`next` of the page before.", examples=["ada"])] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Users on a page.", examples=[100])] = 100,
) -> Response:
    """Users who have adapted, in the order of their ids."""
    if after is not None:
        check_user_id(after)
    users, following = await runtime_of(request).users.page(caller_of(request).tenant_id, after, limit)
    return json_response({"users": [user_out(user) for user in users], "next": following})


@router.get(
    "/users/{user_id:path}",
    response_model=UserOut,
    responses=documented(404, 421, 422, 500, 503),
    openapi_extra=needs("adapt"),
    summary="A user's state",
)
async def get_user(request: Request, user_id: UserIdPath) -> Response:
    """Version, weights and number of pairs of one user, and whether their taste changes."""
    check_user_id(user_id)
    user, taste = await runtime_of(request).users.get(caller_of(request).tenant_id, user_id)
    half_life_days = None if taste.half_life_s is None else taste.half_life_s / DAY_S
    return json_response(user_out(user) | {"drift": taste.drift, "half_life_days": half_life_days})


@router.delete(
    "/users/{user_id:path}",
    status_code=204,
    response_class=Response,
    responses=documented(404, 421, 422, 500, 503),
    openapi_extra=needs("adapt"),
    summary="Forget a user",
)
async def delete_user(request: Request, user_id: UserIdPath) -> Response:
    """Erase a user: all that they said, what is kept of it, every version and kept answer.

    Scored texts are cached without a user and expire.
    """
    check_user_id(user_id)
    await runtime_of(request).users.erase(caller_of(request).tenant_id, user_id)
    return Response(status_code=204)
