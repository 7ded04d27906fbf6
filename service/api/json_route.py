"""Strict JSON in, quick JSON out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

P = ParamSpec("P")
T = TypeVar("T")

# Every value may be wrong, and a description of what is wrong takes far more memory than the value: 3 MB of empty
# pairs took 4 GB and half a minute. 4,096 items with prompts of three messages have 61,000.
MAX_JSON_VALUES: Final = 65_536
# A body of so many bytes is read before a thread has begun.
_READ_AT_ONCE: Final = 65_536


class StrictJsonRequest(Request):
    """A request whose body must be JSON in UTF-8: no NaN, no lone surrogates, no invalid bytes."""

    async def json(self) -> Any:
        """The parsed body.

        Raises:
            json.JSONDecodeError: It is no JSON; FastAPI makes a validation error of it.
            HTTPException: 413, more than `MAX_JSON_VALUES` values.
        """
        body = orjson.loads(await self.body())
        if not _has_at_most(MAX_JSON_VALUES, body):
            raise HTTPException(413, f"At most {MAX_JSON_VALUES} JSON values a request; split it.")
        return body


def _has_at_most(limit: int, body: Any) -> bool:
    values = 0
    waiting = [[body]]
    while waiting:
        children = waiting.pop()
        values += len(children)
        if values > limit:
            return False
        for child in children:
            if isinstance(child, dict):
                waiting.append(list(child.values()))
            elif isinstance(child, list):
                waiting.append(child)
    return True


class JsonRoute(APIRoute):
    """A route whose handlers see a `StrictJsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler over the stricter request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(StrictJsonRequest(request.scope, request.receive))

        return handle


async def body_bytes(request: Request) -> bytes:
    """The body of a request that a route reads by itself.

    Raises:
        HTTPException: 400, the client left before its end.
    """
    try:
        return await request.body()
    except ClientDisconnect:
        raise HTTPException(400, "The request ended before its body did.") from None


async def read_aside(body: bytes, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `read` makes of `body`, or of what came of it: in a thread, where it would hold up all other requests."""
    if len(body) <= _READ_AT_ONCE:
        return read(*args, **kwargs)
    return await asyncio.to_thread(read, *args, **kwargs)


def json_response(content: Any, status: int = 200) -> Response:
    """A response written by orjson, past FastAPI's own serialisation (the documented models are checked in tests)."""
    return Response(orjson.dumps(content), status, media_type="application/json")
