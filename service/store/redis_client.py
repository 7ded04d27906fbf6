"""Redis as an accelerator: every call is short, and none fails anything but itself.

Only the `redis_*` modules import redis-py, and only where a server has a REDIS_URL.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from service.errors import ConfigurationError, Unavailable
from service.observability.metrics import Metrics
from service.store.circuit import CircuitBreaker

logger = logging.getLogger(__name__)

Command = tuple[bytes | str | int | float, ...]
Result = TypeVar("Result")

MAX_CONNECTIONS = 16
# Written by the trial that ends an outage. A Redis that answers reads and refuses writes (a replica, a full memory)
# is as good as none: what it holds would grow old unnoticed.
_PROBE_KEY = b"mr:probe"


class RedisUnavailable(Exception):
    """Redis did not do as asked. Never leaves `service.store`: those who asked go on without."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RedisClient:
    """Commands to one Redis with a time limit and a circuit breaker. Lives on one event loop; connects when asked.

    The first failure opens the circuit, and then every call fails at once. Requests never try whether Redis is back:
    a task of this class does. Before it closes the circuit it calls what was given to `on_recovery`; until all of
    that has succeeded Redis is not trusted.
    """

    def __init__(self, url: str, *, timeout_s: float, metrics: Metrics, circuit: CircuitBreaker | None = None) -> None:
        """Prepare; nothing is connected.

        Raises:
            ConfigurationError: The URL cannot be read.
        """
        try:
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=MAX_CONNECTIONS,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                # RESP 2: no push messages, and nothing is negotiated but the password.
                protocol=2,
                driver_info=None,
            )
            # It parses lazily; an impossible URL shall end the start, not the first request.
            pool.make_connection()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, redis.exceptions.RedisError) as error:
            raise ConfigurationError(
                "REDIS_URL: cannot be read; write redis://:password@host:6379/0 (rediss:// for TLS)"
            ) from error
        self._redis = redis.asyncio.Redis(connection_pool=pool)
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._circuit = circuit or CircuitBreaker()
        self._reason = ""
        self._recovery: asyncio.Task[None] | None = None
        self._on_recovery: list[Callable[[], Awaitable[None]]] = []
        self._closed = False
        metrics.dependency_up.labels("redis").set_function(lambda: float(self._circuit.closed))

    @property
    def up(self) -> bool:
        """Whether Redis is in use."""
        return self._circuit.closed

    def on_recovery(self, action: Callable[[], Awaitable[None]]) -> None:
        """Register what must succeed before Redis is trusted again; it uses `trial`."""
        self._on_recovery.append(action)

    async def call(self, operation: str, *command: bytes | str | int | float) -> Any:
        """The answer to one command.

        Raises:
            RedisUnavailable: There is none; the circuit is open now.
        """
        return await self._guarded(operation, lambda: self._redis.execute_command(*command))  # type: ignore[no-untyped-call]

    async def pipeline(self, operation: str, commands: Sequence[Command]) -> list[Any]:
        """The answers to several commands sent together; if one is refused, the call fails.

        Raises:
            RedisUnavailable: Nothing is known of any of the commands; the circuit is open now.
        """
        return await self._guarded(operation, lambda: self._pipeline(commands))

    async def trial(self, commands: Sequence[Command]) -> list[Any]:
        """`pipeline` for the actions of `on_recovery`, while the circuit lets nobody else pass."""
        return await self._timed("recover", lambda: self._pipeline(commands))

    async def ping(self) -> None:
        """Ask Redis whether it is there.

        Raises:
            Unavailable: It is not; the message says why.
        """
        try:
            await self.call("ping", "PING")
        except RedisUnavailable:
            raise Unavailable(f"redis: {self._reason}; the database answers instead") from None

    async def close(self) -> None:
        """Stop looking for Redis and close every connection."""
        self._closed = True
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.wait([self._recovery], timeout=2 * self._timeout_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._redis.aclose(close_connection_pool=True)
        except (TimeoutError, OSError, redis.exceptions.RedisError):
            logger.debug("connections to Redis were dropped, not closed")

    async def _pipeline(self, commands: Sequence[Command]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = await pipeline.execute(raise_on_error=True)
            return answers

    async def _guarded(self, operation: str, ask: Callable[[], Awaitable[Result]]) -> Result:
        if not self._circuit.closed:
            self._metrics.redis_errors.labels(operation, "circuit_open").inc()
            raise RedisUnavailable("circuit_open")
        try:
            return await self._timed(operation, ask)
        except RedisUnavailable as error:
            self._open(error.reason)
            raise

    async def _timed(self, operation: str, ask: Callable[[], Awaitable[Result]]) -> Result:
        started = time.perf_counter()
        try:
            # Over all: the wait for a connection, making one, and the answer each have their own limit.
            async with asyncio.timeout(self._timeout_s):
                answer = await ask()
        except Exception as error:  # whatever goes wrong with an accelerator, the request goes on without
            reason = _reason(error)
            if reason == "fault":
                logger.exception("a call to Redis failed in a way that is not Redis's")
            self._metrics.redis_errors.labels(operation, reason).inc()
            raise RedisUnavailable(reason) from error
        self._metrics.redis_seconds.labels(operation).observe(time.perf_counter() - started)
        return answer

    def _open(self, reason: str) -> None:
        if not self._circuit.fail(time.monotonic()):
            return
        self._reason = _EXPLANATIONS[reason].format(timeout_s=self._timeout_s)
        logger.warning("redis: %s; going on without it", self._reason)
        if not self._closed:
            self._recovery = asyncio.get_running_loop().create_task(self._recover())

    async def _recover(self) -> None:
        # Told twice to end: while redis-py closes a connection it may swallow a cancellation.
        while not self._circuit.closed and not self._closed:
            await asyncio.sleep(max(0.0, self._circuit.try_at - time.monotonic()))
            if not self._circuit.begin_trial(time.monotonic()):
                continue
            succeeded = False
            try:
                await self.trial([("SET", _PROBE_KEY, b"1", "PX", 1000)])
                for action in self._on_recovery:
                    await action()
                succeeded = True
            except RedisUnavailable as error:
                self._reason = _EXPLANATIONS[error.reason].format(timeout_s=self._timeout_s)
            finally:
                # No await since the last action: nothing can have been added to what it sent.
                self._circuit.end_trial(time.monotonic(), succeeded=succeeded)
        if self._circuit.closed:
            logger.info("redis: answers again")


_EXPLANATIONS = {
    "timeout": "no answer within {timeout_s:g} s",
    "connection": "not reachable",
    "refused": "refuses commands (password, read-only or out of memory)",
    "fault": "cannot be used",
}


def _reason(error: Exception) -> str:
    if isinstance(error, (TimeoutError, redis.exceptions.TimeoutError)):
        return "timeout"
    # The password is told as a failure to connect.
    if isinstance(error, (redis.exceptions.AuthenticationError, redis.exceptions.AuthorizationError)):
        return "refused"
    if isinstance(error, redis.exceptions.ResponseError):
        return "refused"
    if isinstance(error, (OSError, redis.exceptions.RedisError)):
        return "connection"
    return "fault"


class RedisKeys:
    """Keys that hold no names: HMAC(secret, kind, parts), each part preceded by its length."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def digest(self, kind: str, *parts: str) -> bytes:
        """32 bytes that stand for `parts`."""
        framed = b"".join(len(part).to_bytes(8, "little") + part for part in (text.encode() for text in (kind, *parts)))
        return hmac.digest(self._secret, framed, hashlib.sha256)
