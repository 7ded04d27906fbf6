"""Which of the loaded checkpoints answers: asked of the database by every replica, changed by operators."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from service.errors import Conflict, MetarewardError
from service.observability.metrics import Metrics
from service.operations.serving import ServedCheckpoint, Serving
from service.operations.shadow import Agreement, Shadow
from service.store.records import ServingRow
from service.store.serving import ServingRepository

logger = logging.getLogger(__name__)

POLL_INTERVAL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint of this process, and what part it plays.

    Attributes:
        served: It.
        active: Whether it answers here.
        shadow: Whether it scores beside the active one.
        previous: Whether a rollback would let it answer.
        agreement: How it agrees with the active one, where it is the shadow.
    """

    served: ServedCheckpoint
    active: bool
    shadow: bool
    previous: bool
    agreement: Agreement | None


@dataclass(frozen=True, slots=True)
class CheckpointsInfo:
    """What is loaded here, and what all replicas are to serve.

    Attributes:
        loaded: Every checkpoint of this process.
        wanted: The checkpoint that all replicas are to answer with.
        generation: Grows with every change of what serves; 0 while nothing was ever activated.
        changed_at: When that last changed.
    """

    loaded: Sequence[LoadedCheckpoint]
    wanted: str
    generation: int
    changed_at: datetime | None


class Checkpoints:
    """The use cases behind `/admin/checkpoints`, and the poll by which replicas follow. Lives on one event loop.

    One question at a time goes to the database, in a thread of its own. While it does not answer, what is known serves.
    """

    def __init__(
        self,
        *,
        serving: Serving,
        repository: ServingRepository,
        shadow: Shadow,
        metrics: Metrics,
        version: str,
        interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        self._serving = serving
        self._repository = repository
        self._shadow = shadow
        self._metrics = metrics
        self._version = version
        self._interval_s = interval_s
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="serving")
        self._failing = False
        self._show()

    def begin(self) -> None:
        """Ask once, before there is an event loop; a database that is down leaves CHECKPOINT active."""
        try:
            self._follow(self._repository.get())
        except MetarewardError as error:
            logger.warning("which checkpoint is active cannot be read, so CHECKPOINT answers for now: %s", error)

    async def watch(self) -> None:
        """Follow what the database says, for ever; to be cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.poll()
                self._failing = False
            except MetarewardError as error:
                if not self._failing:
                    logger.warning("which checkpoint is active cannot be read; %s serves on: %s", self._active(), error)
                self._failing = True
            except Exception:  # replicas that cease to follow would answer with different checkpoints for good
                logger.exception("which checkpoint is active could not be asked. This is a bug")

    async def poll(self) -> None:
        """Ask the database and follow.

        Raises:
            Unavailable: It does not answer.
        """
        async with self._lock:
            self._follow(await self._ask(self._repository.get))

    def list(self) -> CheckpointsInfo:
        """What is loaded, and what part each plays."""
        row, active, shadow = self._serving.row, self._serving.active, self._serving.shadow
        previous = None if row is None else row.previous
        loaded = [
            LoadedCheckpoint(
                served=served,
                active=served is active,
                shadow=served is shadow,
                previous=served.checkpoint_id == previous,
                agreement=self._shadow.agreement(active, served) if served is shadow else None,
            )
            for served in self._serving.loaded
        ]
        if row is None:
            return CheckpointsInfo(loaded, active.checkpoint_id, 0, None)
        return CheckpointsInfo(loaded, row.active, row.generation, row.changed_at)

    async def activate(self, checkpoint_id: str) -> CheckpointsInfo:
        """Let a checkpoint answer: here before this returns, on other replicas when they next ask.

        Raises:
            Conflict: It is not loaded here, or its engine does not answer.
            Unavailable: The database does not answer; nothing changed.
        """
        self._require(checkpoint_id)
        return await self._change(lambda: self._repository.activate(checkpoint_id))

    async def rollback(self) -> CheckpointsInfo:
        """Let the checkpoint answer that did before.

        Raises:
            Conflict: There was none before, or it is not loaded here, or its engine does not answer.
            Unavailable: The database does not answer; nothing changed.
        """
        await self.poll()
        row = self._serving.row
        if row is not None and row.previous is not None:
            self._require(row.previous)
        return await self._change(self._repository.rollback)

    async def shadow(self, checkpoint_id: str | None) -> CheckpointsInfo:
        """Let a checkpoint score beside the active one, or none.

        Raises:
            Conflict: It is active, or not loaded here, or its engine does not answer.
            Unavailable: The database does not answer; nothing changed.
        """
        if checkpoint_id is not None:
            self._require(checkpoint_id)
        return await self._change(lambda: self._repository.shadow(checkpoint_id))

    def close(self) -> None:
        """Let the thread go; a question that hangs ends by the database's own time limit."""
        self._thread.shutdown(wait=False)

    def _require(self, checkpoint_id: str) -> None:
        served = self._serving.get(checkpoint_id)
        if served is None:
            known = ", ".join(f"{each.checkpoint_id} ({each.checkpoint.name})" for each in self._serving.loaded)
            raise Conflict(
                f"This server has not loaded checkpoint {checkpoint_id}; it has {known}. Name its directory in "
                "CHECKPOINTS and start the server again."
            )
        if not served.engine.healthy:
            raise Conflict(f"No engine answers for checkpoint {checkpoint_id} now; see /ready and /admin/self-check.")

    async def _change(self, change: Callable[[], ServingRow]) -> CheckpointsInfo:
        async with self._lock:
            # Where nothing was ever activated, what answers now is what a rollback goes back to.
            first = self._serving.active.checkpoint_id

            def work() -> ServingRow:
                self._repository.begin(first)
                return change()

            row = await self._ask(work)
            # Shown in one step of the event loop: every request begins before or after it.
            self._follow(row)
        return self.list()

    async def _ask(self, question: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, question)

    def _follow(self, row: ServingRow | None) -> None:
        before = self._serving.row, self._serving.active, self._serving.shadow
        self._serving.follow(row)
        if before == (self._serving.row, self._serving.active, self._serving.shadow):
            return
        if before[1] is not self._serving.active:
            logger.info("checkpoint %s answers now", self._active())
        if self._serving.missing is not None and (before[0] is None or row is None or before[0].active != row.active):
            logger.error("%s", self._serving.shortcomings()[0])
        self._show()

    def _active(self) -> str:
        active = self._serving.active
        return f"{active.checkpoint_id} ({active.checkpoint.name})"

    def _show(self) -> None:
        active, shadow = self._serving.active, self._serving.shadow
        for served in self._serving.loaded:
            labels = served.checkpoint_id, served.checkpoint.name
            self._metrics.checkpoint_active.labels(*labels).set(served is active)
            self._metrics.checkpoint_shadow.labels(*labels).set(served is shadow)
        self._metrics.checkpoint_missing.set(self._serving.missing is not None)
        self._metrics.build.clear()
        self._metrics.build.labels(self._version, active.checkpoint_id, active.checkpoint.heads_id).set(1)
