"""Whether this process can take traffic."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass, field

from service.errors import Unavailable
from service.operations.engine import Engine
from service.store.database import Database


@dataclass(frozen=True, slots=True)
class Readiness:
    """`ready`, and the shared dependencies that are down, with reasons."""

    ready: bool
    degraded: list[str] = field(default_factory=list)


class ReadinessCheck:
    """The use case behind `/ready`.

    Only what is this process's own makes it unready. If a database that all replicas share did, all of them would
    leave at once.
    """

    def __init__(self, *, engine: Engine, database: Database, executor: Executor) -> None:
        self._engine = engine
        self._database = database
        self._executor = executor

    async def __call__(self) -> Readiness:
        """Ask the engine and the database."""
        degraded = []
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._database.ping)
        except Unavailable as error:
            degraded.append(str(error))
        return Readiness(self._engine.healthy, degraded)
