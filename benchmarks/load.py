"""A load generator that costs little: keep-alive connections, one request in flight on each."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import orjson
import uvloop


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Latencies in seconds, in no particular order; wall-clock seconds; answers other than 200."""

    latencies_s: np.ndarray
    wall_s: float
    failures: int

    @property
    def per_second(self) -> float:
        """Requests answered a second."""
        return len(self.latencies_s) / self.wall_s

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latency in milliseconds."""
        return float(np.percentile(self.latencies_s, percent)) * 1e3


class _Client(asyncio.Protocol):
    """Takes the next of the requests that all clients share; with `reconnect` on a connection of its own each."""

    def __init__(self, requests: deque[bytes], latencies: list[float], *, reconnect: bool) -> None:
        self._requests = requests
        self._latencies = latencies
        self._reconnect = reconnect
        self._buffer = b""
        self._sent_at = 0.0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failures = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        if not self._requests:
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(self._requests.popleft())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        length = answer_length(self._buffer)
        if length is None or len(self._buffer) < length:
            return
        self._latencies.append(time.perf_counter() - self._sent_at)
        self.failures += not self._buffer.startswith(b"HTTP/1.1 200")
        self._buffer = b""
        if self._reconnect:
            self._transport.close()
        else:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set_result(None)


def run_clients(
    url: str,
    bodies: Sequence[bytes],
    *,
    clients: int,
    reconnect: bool = False,
    headers: Mapping[str, str] | None = None,
) -> LoadResult:
    """Send each body once, in order, by so many clients that take the next one as soon as they are answered.

    Args:
        url: Where to.
        bodies: JSON.
        clients: Requests in flight.
        reconnect: Whether every request has a connection of its own, as clients have that open a session for each.
        headers: More of them.
    """
    parts = urlsplit(url)
    prepared = {body: request_bytes(url, body, headers) for body in set(bodies)}
    requests = deque(prepared[body] for body in bodies)
    latencies: list[float] = []

    async def client() -> int:
        failures = 0
        while requests:
            _, protocol = await asyncio.get_running_loop().create_connection(
                lambda: _Client(requests, latencies, reconnect=reconnect), parts.hostname, parts.port
            )
            await protocol.closed
            failures += protocol.failures
        return failures

    async def drive() -> LoadResult:
        started = time.perf_counter()
        failures = sum(await asyncio.gather(*(client() for _ in range(clients))))
        wall_s = time.perf_counter() - started
        if len(latencies) != len(bodies):
            raise RuntimeError(f"{len(bodies) - len(latencies)} of {len(bodies)} requests were not answered")
        return LoadResult(np.array(latencies), wall_s, failures)

    return uvloop.run(drive())


def request_bytes(url: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """One POST of JSON, as it goes over the wire."""
    parts = urlsplit(url)
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"{more}Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def run_load(url: str, bodies: Sequence[bytes], *, requests: int, connections: int) -> LoadResult:
    """Send `requests` POSTs, cycling through `bodies`, over `connections` at once."""
    return run_clients(url, [bodies[i % len(bodies)] for i in range(requests)], clients=connections)


class Caller:
    """One blocking keep-alive connection, for latencies without a client library's own time."""

    def __init__(self, url: str) -> None:
        self._url = url
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, body: dict[str, Any]) -> tuple[float, Any]:
        """POST a body; milliseconds until the whole answer was read, and the answer."""
        request = request_bytes(self._url, orjson.dumps(body))
        started = time.perf_counter()
        self._socket.sendall(request)
        received = b""
        while (length := answer_length(received)) is None or len(received) < length:
            received += self._socket.recv(1 << 20)
        latency_ms = (time.perf_counter() - started) * 1e3
        return latency_ms, orjson.loads(received.partition(b"\r\n\r\n")[2])


def answer_length(received: bytes) -> int | None:
    """Bytes of the answer that begins with `received`, head included; None while the head is not whole."""
    head, separator, _ = received.partition(b"\r\n\r\n")
    if not separator:
        return None
    lengths = (line.partition(b":")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return len(head) + len(separator) + int(next(lengths))
