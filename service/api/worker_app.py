"""The worker's front door: vLLM's `POST /classify`, and what an orchestrator asks.

Plain ASGI: one route that matters, and every millisecond here is added to every text that is not cached. A worker of
ours and a stock `vllm serve` of an exported checkpoint answer alike, in errors too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

import orjson

from service.api.classify_answer import classify_answer
from service.api.classify_request import parse_classify, parse_timeout
from service.api.departure import Departure
from service.api.error_dialects import ERROR_TYPES, OVERLOADED
from service.api.request_id import assign_request_id
from service.api.worker_openapi import worker_document
from service.errors import (
    EngineError,
    InvalidInput,
    MetarewardError,
    NotFound,
    Overloaded,
    TemporaryError,
    Unavailable,
)
from service.observability.requests import RequestObserver
from service.runtime.worker import WorkerRuntime
from service.settings import is_loopback

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Headers = dict[bytes, bytes]

logger = logging.getLogger(__name__)

QUEUED_TOKENS: Final = b"x-queued-tokens"
TIMEOUT: Final = b"x-timeout-ms"
_PUBLIC: Final = {"/live", "/ready", "/openapi.json"}
_ROUTES: Final = {
    "/live": "GET",
    "/ready": "GET",
    "/openapi.json": "GET",
    "/v1/models": "GET",
    "/classify": "POST",
    "/self-check": "POST",
}
_CLIENT_LEFT: Final = 499  # in the log; nobody is there to be answered


class _RefusedError(Exception):
    def __init__(
        self, status: int, message: str, *, param: str | None = None, retry_after_s: float = 0.0, allow: str = ""
    ) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.kind = ERROR_TYPES[status]
        self.param = param
        self.retry_after_s = retry_after_s
        self.allow = allow


class WorkerApp:
    """The ASGI application over a worker; it closes the worker when it shuts down."""

    def __init__(
        self,
        runtime: WorkerRuntime,
        *,
        key: str,
        max_body_bytes: int,
        timeout_s: float,
        observer: RequestObserver | None = None,
    ) -> None:
        """With a `key` every route but the public ones needs it; without, the Host must be a name of loopback."""
        self._observer = observer or RequestObserver(None)
        self._runtime = runtime
        self._lifecycle = runtime.lifecycle
        self._key = key.encode()
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._started = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send_on: Send) -> None:
        """Answer one request, exactly once."""
        if scope["type"] == "lifespan":
            await self._live(receive, send_on)
            return
        if scope["type"] != "http":
            return
        departure = Departure(receive)
        counted = False
        body = bytearray()
        observed = self._observer.begin(scope["method"], assign_request_id(scope), scope["headers"])
        answered = _CLIENT_LEFT

        async def send(event: Event) -> None:
            nonlocal answered
            if event["type"] == "http.response.start":
                answered = event["status"]
            else:
                observed.bytes_out += len(event["body"])
            await send_on(event)

        try:
            headers: Headers = dict(scope["headers"])
            path = scope["path"]
            if path not in _PUBLIC:
                self._lifecycle.begin_request()
                counted = True
                self._authenticate(scope["headers"])
            if (method := _ROUTES.get(path)) is None:
                raise _RefusedError(404, "no such path; GET /openapi.json tells what this worker answers")
            if scope["method"] != method:
                raise _RefusedError(405, f"this path is asked with {method}", allow=method)
            if path == "/classify":
                timeout_s = min(self._timeout_s, parse_timeout(headers.get(TIMEOUT)))
                deadline = time.monotonic() + timeout_s
                async with asyncio.timeout(timeout_s):
                    await self._receive(headers, receive, body)
                    departure.watch()
                    answer = await self._classify(bytes(body), deadline)
                status = 200
            elif path == "/self-check":
                async with asyncio.timeout(self._timeout_s):
                    await self._receive(headers, receive, body)
                    departure.watch()
                    answer = await self._self_check(bytes(body))
                status = 200
            else:
                status, answer = self._tell(path)
            departure.end()
            await self._send(send, status, answer)
        except asyncio.CancelledError:
            if departure.noticed:
                logger.debug("a client left before its answer")
                return
            # The process ends and has run out of patience with this request.
            await self._refuse(send, _RefusedError(503, "this worker is ending", retry_after_s=1.0))
            raise
        except (_RefusedError, MetarewardError, TimeoutError) as error:
            departure.end()
            await self._refuse(send, self._refusal(error))
        except Exception:
            departure.end()
            logger.exception("unexpected error")
            await self._refuse(send, _RefusedError(500, "the worker failed on this request"))
        finally:
            departure.end()
            if counted:
                self._lifecycle.end_request(len(body))
            route = scope["path"] if scope["path"] in _ROUTES else "unmatched"
            self._observer.end(observed, scope["method"], route, answered, len(body))

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        checks = asyncio.create_task(self._runtime.self_checks.repeat())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        checks.cancel()
        await self._runtime.self_checks.close()
        await asyncio.to_thread(self._runtime.close)
        await send({"type": "lifespan.shutdown.complete"})

    def _authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if self._key:
            sent = [value.partition(b" ") for name, value in headers if name == b"authorization"]
            scheme, _, key = sent[0] if len(sent) == 1 else (b"", b"", b"")
            if scheme.lower() != b"bearer" or not secrets.compare_digest(key.strip(), self._key):
                raise _RefusedError(401, "this worker needs its ENGINE_API_KEY: send one Authorization: Bearer <key>")
            return
        # Without a key, a page in the operator's browser may reach a loopback port by a name pointed at it.
        host = dict(headers).get(b"host", b"").decode("latin-1").lower()
        name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
        if not is_loopback(name):
            raise _RefusedError(421, "call this worker as localhost, 127.0.0.1 or [::1]; it has no ENGINE_API_KEY")

    async def _receive(self, headers: Headers, receive: Receive, body: bytearray) -> None:
        # Browsers send JSON to another origin only after asking, and nobody answers that.
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise _RefusedError(415, "send the header Content-Type: application/json")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise self._too_large()
        more = True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise _RefusedError(400, "the request ended before its body did")
            part: bytes = event.get("body", b"")
            if len(body) + len(part) > self._max_body_bytes:
                raise self._too_large()
            self._lifecycle.receive(len(part))
            body += part
            more = event.get("more_body", False)

    def _too_large(self) -> _RefusedError:
        return _RefusedError(413, f"at most {self._max_body_bytes} bytes a request; send fewer texts at once")

    async def _classify(self, body: bytes, deadline: float) -> dict[str, Any]:
        runtime = self._runtime
        request = parse_classify(body, runtime.classify)
        classify, scope = runtime.classify[str(request.model)], request.scope
        try:
            if request.messages:
                done = await classify.messages(request.messages, scope=scope, deadline=deadline)
            elif request.texts:
                special = request.add_special_tokens
                done = await classify.texts(request.texts, add_special_tokens=special, scope=scope, deadline=deadline)
            else:
                done = await classify.ids(request.ids, scope=scope, deadline=deadline)
        except Unavailable:
            if time.monotonic() < deadline:
                raise
            raise TimeoutError from None  # the engine was as quick to notice; nothing is wrong with it
        return classify_answer(str(request.model), done.rewards_BK, done.tokens)

    async def _self_check(self, body: bytes) -> dict[str, Any]:
        try:
            asked = orjson.loads(body)
        except orjson.JSONDecodeError:
            asked = None
        if asked != {}:
            raise _RefusedError(400, "there is nothing to choose; send {}")
        return (await self._runtime.self_checks()).as_json()

    def _tell(self, path: str) -> tuple[int, dict[str, Any]]:
        runtime = self._runtime
        if path == "/live":
            return 200, {"status": "live"}
        if path == "/openapi.json":
            return 200, worker_document()
        if path == "/ready":
            state = "ready" if runtime.engine.healthy else "the device fails"
            if runtime.self_checks.failure is not None:
                state = "the self-check failed"
            if self._lifecycle.draining:
                state = "draining"
            return 200 if state == "ready" else 503, {"status": state, "queued_tokens": runtime.engine.queued_tokens}
        if runtime.self_checks.failure is not None:  # whoever looks after this worker takes it out
            raise _RefusedError(503, f"the self-check failed: {runtime.self_checks.failure}", retry_after_s=1.0)
        models = [
            {
                "id": model,
                "object": "model",
                "created": self._started,
                "owned_by": "metareward",
                "root": runtime.backbone,
                "max_model_len": runtime.max_tokens,
                "dtype": runtime.dtype,
            }
            for model in runtime.classify
        ]
        return 200, {"object": "list", "data": models}

    def _refusal(self, error: Exception) -> _RefusedError:
        match error:
            case _RefusedError():
                return error
            case TimeoutError():
                return _RefusedError(504, f"not done within x-timeout-ms, or {self._timeout_s:g} s", retry_after_s=1.0)
            case InvalidInput():
                return _RefusedError(400, str(error), param=error.issues[0].field)
            case NotFound():
                return _RefusedError(404, str(error), param="model")
            case TemporaryError():
                refusal = _RefusedError(503, str(error), retry_after_s=error.retry_after_s)
                if isinstance(error, Overloaded):
                    refusal.kind = OVERLOADED
                return refusal
            case EngineError():
                return _RefusedError(500, str(error))
            case _:
                logger.error("unexpected error", exc_info=error)
                return _RefusedError(500, "the worker failed on this request")

    async def _refuse(self, send: Send, refusal: _RefusedError) -> None:
        body = {"message": refusal.message, "type": refusal.kind, "param": refusal.param, "code": refusal.status}
        extra = []
        if refusal.retry_after_s:
            extra.append((b"retry-after", str(max(1, math.ceil(refusal.retry_after_s))).encode()))
        if refusal.status == 401:
            extra.append((b"www-authenticate", b"Bearer"))
        if refusal.allow:
            extra.append((b"allow", refusal.allow.encode()))
        if refusal.status == 413:
            extra.append((b"connection", b"close"))  # what is left of the body is not read
        await self._send(send, refusal.status, {"error": body}, extra)

    async def _send(
        self, send: Send, status: int, content: dict[str, Any], extra: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        body = orjson.dumps(content)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (QUEUED_TOKENS, str(self._runtime.engine.queued_tokens).encode()),
            *(extra or []),
        ]
        if self._lifecycle.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
