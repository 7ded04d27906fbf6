"""What the sync and the async loop share: how a call becomes an HTTPX request, and what its failures mean."""

from __future__ import annotations

import time
from typing import Any

import httpx

from metareward_client._attempts import Broken, Send
from metareward_client._call import Answer, Call
from metareward_client._config import Config

CONNECT_S = 5.0
"""Longest that making a connection may take; then it is tried again."""

KEEP_S = 4.0
"""How long a connection is kept that nothing uses: less than servers keep theirs (uvicorn: 5 s)."""


class TimeLeft(dict[str, float]):
    """Timeouts of one request that shrink as time passes: together its phases take what there is, not each."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        super().__init__({phase: self.get(phase) for phase in ("connect", "read", "write", "pool")})

    def get(self, phase: str, default: Any = None) -> float:
        """What is left for a phase. Nothing left is next to nothing: 0 would mean not to wait at all."""
        left = max(self._until - time.monotonic(), 0.001)
        return min(left, CONNECT_S) if phase == "connect" else left

    @property
    def over(self) -> bool:
        """Whether there is none left."""
        return time.monotonic() >= self._until


def request_of(client: httpx.Client | httpx.AsyncClient, config: Config, call: Call[Any], step: Send) -> httpx.Request:
    """The request of one attempt."""
    headers = {"X-Request-ID": step.request_id}
    if call.body is not None:
        headers["Content-Type"] = "application/json"
    if call.idempotency_key is not None:
        headers["Idempotency-Key"] = call.idempotency_key
    request = client.build_request(
        call.method,
        f"{config.base_url}{call.path}",
        content=call.body,
        params=call.query or None,
        headers=headers,
    )
    request.extensions["timeout"] = TimeLeft(step.seconds)
    return request


def answer_of(response: httpx.Response, body: bytes) -> Answer:
    """What a response says."""
    return Answer(response.status_code, {name.lower(): value for name, value in response.headers.items()}, body)


def broken(error: Exception) -> tuple[Broken, str]:
    """What an error of HTTPX means for the request, and how to say it."""
    match error:
        case httpx.ConnectTimeout():
            return Broken.NEVER_SENT, f"{_address(error)} cannot be reached: no connection in time."
        case httpx.ConnectError() | httpx.ProxyError():
            return Broken.NEVER_SENT, f"{_address(error)} cannot be reached: {error}. Is the server started there?"
        case httpx.PoolTimeout():
            return Broken.NO_CONNECTION_IN_TIME, ""
        case httpx.TimeoutException():
            return Broken.OUT_OF_TIME, ""
        case _:
            return Broken.MAY_HAVE_ARRIVED, f"The connection broke before the answer came: {error}."


def _address(error: httpx.RequestError) -> str:
    """Where it was sent, without path and password."""
    url = error.request.url
    return f"{url.scheme}://{url.netloc.decode()}"


def client_options(config: Config) -> dict[str, Any]:
    """What HTTPX clients are made with."""
    secure = (config.base_url or "").startswith("https:")
    return {
        "headers": config.request_headers(),
        # Certificates take 20 ms to load, which plain HTTP does without.
        "verify": config.verify if secure else False,
        "limits": httpx.Limits(
            max_connections=config.max_connections,
            max_keepalive_connections=config.max_connections,
            keepalive_expiry=KEEP_S,
        ),
    }
