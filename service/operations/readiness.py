"""Whether this process can take traffic."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from service.errors import MetarewardError
from service.observability.metrics import Metrics
from service.operations.engine import Engine
from service.operations.lifecycle import Lifecycle
from service.operations.self_check import SelfChecks
from service.store.database import Database

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Readiness:
    """`ready`, and the shared dependencies that are down, with reasons."""

    ready: bool
    degraded: list[str] = field(default_factory=list)


class Dependency(Protocol):
    """A shared dependency that can be asked whether it is there."""

    async def ping(self) -> None:
        """Return if it is, within its own time limit; else raise `Unavailable` with the reason."""


class ReadinessCheck:
    """The use case behind `/ready`. Lives on one event loop.

    Only what is this process's own makes it unready. If a database or an engine that all replicas share did, all of
    them would leave at once.
    """

    def __init__(
        self,
        *,
        engine: Callable[[], Engine],
        database: Database,
        lifecycle: Lifecycle,
        redis: Dependency | None = None,
        metrics: Metrics | None = None,
        self_checks: SelfChecks | None = None,
        timeout_s: float = 2.0,
        shortcomings: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Nothing is asked before it is called.

        Args:
            engine: Gives the one that answers now.
            database: Asked in a thread of its own.
            lifecycle: Whether the process is about to end.
            redis: Where there is one.
            metrics: Where to tell.
            self_checks: Whether the engine still gives the recorded numbers.
            timeout_s: The longest wait for the database.
            shortcomings: Gives what else this process cannot do that it should.
        """
        self._engine = engine
        self._shortcomings = shortcomings
        self._database = database
        self._lifecycle = lifecycle
        self._redis = redis
        self._metrics = metrics
        self._self_checks = self_checks
        self._timeout_s = timeout_s
        # Of its own: where requests wait for a database that hangs, the question must not queue behind them.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ready")
        self._asking: asyncio.Future[None] | None = None
        self._asked_at = 0.0
        self._database_up = True

    async def __call__(self) -> Readiness:
        """Ask the engine, the database and Redis; the answer takes little more than `timeout_s` at most."""
        degraded = []
        # One question at a time: those that come while it hangs learn from it.
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().run_in_executor(self._thread, self._database.ping)
            self._asked_at = time.monotonic()
        patience_s = max(0.0, self._asked_at + self._timeout_s - time.monotonic())
        try:
            await asyncio.wait_for(asyncio.shield(self._asking), patience_s)
        except TimeoutError:
            degraded.append(f"database: no answer within {self._timeout_s:g} s")
        except MetarewardError as error:
            degraded.append(str(error))
        self._tell("database", up=not degraded)
        if self._database_up == bool(degraded):
            self._database_up = not degraded
            if degraded:
                logger.warning("%s; known users are scored on, what needs it gets 503", degraded[0])
            else:
                logger.info("database: answers again")
        if self._redis is not None:
            try:
                await self._redis.ping()
            except MetarewardError as error:
                degraded.append(str(error))
        engine = self._engine()
        healthy = engine.healthy
        self._tell("engine", up=healthy)
        if engine.shared and not healthy:
            degraded.append("engine: no worker answers; texts that are not cached get 503")
        # A remote worker that failed is taken out, and the others serve on.
        failure = None if self._self_checks is None or engine.shared else self._self_checks.failure
        if failure is not None:
            degraded.append(f"engine: its self-check failed ({failure})")
        degraded += self._shortcomings()
        own = engine.shared or (healthy and failure is None)
        return Readiness(own and not self._lifecycle.draining, degraded)

    def _tell(self, dependency: str, *, up: bool) -> None:
        if self._metrics is not None:
            self._metrics.dependency_up.labels(dependency).set(up)

    def close(self) -> None:
        """Let the thread go; a question that hangs ends by the database's own time limit."""
        self._thread.shutdown(wait=False)
