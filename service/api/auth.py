"""Keys at the door: who calls is known before the body is read, and what they may before it is parsed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Final, cast

from fastapi import Request, Response
from starlette.datastructures import Headers

from service.api.errors import answer_to
from service.api.json_route import JsonRoute
from service.errors import MetarewardError
from service.operations.access import Access, Caller
from service.operations.keys import Role

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# All that is answered without a key. Unknown paths are not among them: who has no key learns nothing of what is here.
PUBLIC_PATHS: Final = frozenset({"/", "/live", "/ready", "/docs", "/openapi.json"})

# What clients of other services that insist on a key are told to send where none is needed: as good as no key.
NO_KEYS: Final = frozenset({"none", "EMPTY"})
SCHEME: Final = "apiKey"
ROLE_FIELD: Final = "x-role"
PUBLIC: Final[dict[str, Any]] = {"security": [], ROLE_FIELD: None}
_CALLER: Final = "metareward.caller"


def needs(role: Role) -> dict[str, Any]:
    """The `openapi_extra` of a route that needs at least `role`; `RoleRoute` enforces what it says."""
    return {"security": [{SCHEME: []}], ROLE_FIELD: role}


def caller_of(request: Request) -> Caller:
    """On whose behalf this request is done; only routes that need a role have one."""
    return cast(Caller, request.scope[_CALLER])


class Doorkeeper:
    """ASGI middleware: lets nobody past who is not known, except to the public paths."""

    def __init__(self, app: App, *, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on with its caller, or answer why not."""
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            try:
                scope[_CALLER] = await self._access.admit(self._bearer_key(Headers(scope=scope)))
            except MetarewardError as error:
                answer = answer_to(Request(scope), error)
                if answer is None:
                    raise
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _bearer_key(self, headers: Headers) -> str | None:
        values = headers.getlist("authorization")
        if not values:
            return None
        scheme, _, key = values[0].partition(" ")
        if len(values) > 1 or scheme.lower() != "bearer" or not key.strip():
            raise self._access.missing("The Authorization header must be one, and read: Bearer mr_...")
        return None if key.strip() in NO_KEYS else key.strip()


class RoleRoute(JsonRoute):
    """A route that checks the caller's role before it reads the body. One that names no role is a bug."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler behind the check."""
        handler = super().get_route_handler()
        role: Role | None = (self.openapi_extra or {})[ROLE_FIELD]
        if role is None:
            if self.path not in PUBLIC_PATHS:
                raise ValueError(f"{self.path} is open to everybody, and not among PUBLIC_PATHS")
            return handler

        async def handle(request: Request) -> Response:
            access: Access = request.app.state.runtime.access
            access.require(caller_of(request), role)
            return await handler(request)

        return handle
