"""What every request passes first, before any work: request id, host, content type, size, time, measurement."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from service.api.departure import Departure
from service.api.errors import PROBLEM_KEY, PROBLEM_MEDIA_TYPE, problem_bytes
from service.api.request_id import HEADER, assign_request_id
from service.errors import Overloaded
from service.observability.metrics import Metrics
from service.observability.requests import RequestObserver
from service.operations.lifecycle import Lifecycle
from service.settings import is_loopback

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)

BODY_METHODS = {"POST", "PUT", "PATCH"}
PROBES = {"/live", "/ready"}  # answered however much is going on
CLIENT_LEFT = 499  # in the metrics; nobody is there to be answered


class _RefusedError(Exception):
    def __init__(self, status: int, kind: str, detail: str) -> None:
        super().__init__(status, kind, detail)
        self.status = status
        self.kind = kind
        self.detail = detail


class _Body:
    """How much of a request's body has been received."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Gate:
    """ASGI middleware around the whole application.

    `host_names` are those that a request's Host may have besides loopback's; None takes any.

    Without keys, a loopback server is still reachable from any web page that the operator's browser opens. The Host
    check stops a page whose name was pointed at loopback; demanding a JSON content type makes browsers ask first
    (CORS preflight), which nobody answers.
    """

    def __init__(
        self,
        app: App,
        *,
        metrics: Metrics,
        lifecycle: Lifecycle,
        max_body_bytes: int,
        timeout_s: float,
        host_names: frozenset[str] | None = frozenset(),
        observer: RequestObserver | None = None,
        routes: Sequence[BaseRoute] = (),
    ) -> None:
        self._app = app
        self._observer = observer or RequestObserver(metrics)
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._host_names = host_names
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = assign_request_id(scope)
        observed = self._observer.begin(scope["method"], request_id, scope["headers"])
        status = 500
        answering = False
        departure = Departure(receive)
        body = _Body()
        taken = False

        async def send_and_note(event: Event) -> None:
            nonlocal status, answering
            if event["type"] == "http.response.start":
                departure.end()
                answering = True
                status = event["status"]
                event["headers"] = [*event["headers"], (HEADER, request_id.encode())]
                if self._lifecycle.draining:
                    # A client that keeps this connection would run into its end.
                    event["headers"].append((b"connection", b"close"))
            else:
                observed.bytes_out += len(event.get("body", b""))
            await send(event)

        async def answer(refusal: _RefusedError) -> None:
            scope[PROBLEM_KEY] = refusal.kind
            await _answer(send_and_note, refusal, scope["path"], request_id)

        try:
            if scope["path"] not in PROBES:
                self._lifecycle.begin_request()
                taken = True
            self._check_headers(scope)
            async with asyncio.timeout(self._timeout_s):
                await self._app(scope, self._limited(receive, departure, body), send_and_note)
        except asyncio.CancelledError:
            if not departure.noticed:
                # The process ends and has run out of patience with this request.
                if not answering:
                    self._metrics.refusals.labels("draining").inc()
                    detail = "This server is ending. Repeat an adapt with its Idempotency-Key."
                    await answer(_RefusedError(503, "draining", detail))
                raise
            status = CLIENT_LEFT
        except Overloaded as error:
            self._metrics.refusals.labels("in_flight").inc()
            await answer(_RefusedError(503, "overloaded", str(error)))
        except _RefusedError as refusal:
            await answer(refusal)
        except TimeoutError:
            if answering:
                raise
            detail = f"Not done within {self._timeout_s:g} s. Repeat an adapt with its Idempotency-Key."
            await answer(_RefusedError(503, "timeout", detail))
        except Exception:
            logger.exception("unexpected error")
            if answering:
                raise
            detail = "The server failed on this request."
            await answer(_RefusedError(500, "internal-error", detail))
        finally:
            departure.end()
            if taken:
                self._lifecycle.end_request(body.bytes)
            problem = str(scope.get(PROBLEM_KEY, ""))
            self._observer.end(observed, scope["method"], self._route(scope), status, body.bytes, problem)

    def _route(self, scope: Scope) -> str:
        """The template of the path: what a refused request was refused at counts, too."""
        route = scope.get("route")
        if route is None:
            # By path and method, else by path alone.
            matches = {route.matches(scope)[0]: route for route in reversed(self._routes)}
            route = matches.get(Match.FULL, matches.get(Match.PARTIAL))
        return str(getattr(route, "path_format", "unmatched"))

    def _check_headers(self, scope: Scope) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
        if not self._answers_to(name.lower(), scope["path"]):
            raise _RefusedError(421, "wrong-host", "Call this server as localhost or by a name in ALLOWED_HOSTS.")
        if scope["method"] in BODY_METHODS:
            content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if content_type != b"application/json":
                raise _RefusedError(415, "not-json", "Send the header Content-Type: application/json.")
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length) > self._max_body_bytes:
                raise self._too_large()

    def _answers_to(self, name: str, path: str) -> bool:
        """Whether a request may name this host. Loopback's names are always this machine's own."""
        names = self._host_names
        # Orchestrators probe by address.
        return names is None or name in names or is_loopback(name) or (bool(names) and path in PROBES)

    def _limited(self, receive: Receive, departure: Departure, body: _Body) -> Receive:
        async def receive_limited() -> Event:
            event = await receive()
            received = len(event.get("body", b""))
            # FastAPI reads the body inside its own handling of errors, and lets only HTTPException through.
            if body.bytes + received > self._max_body_bytes:
                raise HTTPException(413, self._too_large().detail)
            try:
                self._lifecycle.receive(received)
            except Overloaded as error:
                self._metrics.refusals.labels("in_flight").inc()
                raise HTTPException(503, str(error)) from error
            body.bytes += received
            if event["type"] == "http.request" and not event.get("more_body", False):
                departure.watch()
            return event

        return receive_limited

    def _too_large(self) -> _RefusedError:
        return _RefusedError(413, "too-large", f"At most {self._max_body_bytes} bytes a request; split it.")


async def _answer(send: Send, refusal: _RefusedError, path: str, request_id: str) -> None:
    body = problem_bytes(path, refusal.status, refusal.kind, refusal.detail, request_id)
    headers = [(b"content-type", PROBLEM_MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    if refusal.status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
