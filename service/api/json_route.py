"""Strict JSON in, quick JSON out."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute


class StrictJsonRequest(Request):
    """A request whose body must be JSON in UTF-8: no NaN, no lone surrogates, no invalid bytes."""

    async def json(self) -> Any:
        """The parsed body.

        Raises:
            json.JSONDecodeError: It is no JSON; FastAPI makes a validation error of it.
        """
        return orjson.loads(await self.body())


class JsonRoute(APIRoute):
    """A route whose handlers see a `StrictJsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler over the stricter request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(StrictJsonRequest(request.scope, request.receive))

        return handle


def json_response(content: Any, status: int = 200) -> Response:
    """A response written by orjson, past FastAPI's own serialisation (the documented models are checked in tests)."""
    return Response(orjson.dumps(content), status, media_type="application/json")
