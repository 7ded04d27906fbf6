"""Which remote workers may serve: let in once they prove themselves, looked after, and taken out when they fail."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from service.observability.metrics import Metrics
from service.worker.balance import WorkerLoad, backoff_s
from service.worker.connection import Connection
from service.worker.remote_parts import RemoteWorker
from service.worker.selfcheck import GoldenRecord, SelfCheck, Verdict, show
from service.worker.wire import WorkerBusy, WorkerFailed

_log = logging.getLogger(__name__)

# What finds a worker that froze while it held requests.
_PROBE_INTERVAL_S: Final = 1.0
# A text that one worker after another refuses must not have them score golden texts without end.
_RECHECK_INTERVAL_S: Final = 0.5
# One that proves itself and then fails is let in again ever later, unless it served for so long.
_STEADY_S: Final = 10.0


class _WrongNumbersError(WorkerFailed):
    """It answers golden texts, and differently; `check` has the figures."""

    def __init__(self, check: SelfCheck) -> None:
        super().__init__("golden", f"it scores golden texts differently: {check}")
        self.check = check


class Fleet:
    """The workers of a remote engine. Lives on its event loop, but for the properties and `tried`."""

    def __init__(
        self,
        connect: Mapping[str, Callable[[], Connection]],
        golden: GoldenRecord,
        metrics: Metrics,
        *,
        window_tokens: int,
        lost: Callable[[RemoteWorker, bool], None],
        gained: Callable[[], None],
        further: bool = False,
    ) -> None:
        """`lost` hears of a worker that was taken out, and whether what it holds must be given up; `gained` of more.

        `further`: another fleet of this process is the one that `dependency_up` tells of.
        """
        self._connect = connect
        self._golden = golden
        self._metrics = metrics
        self._lost = lost
        self._gained = gained
        self._further = further
        self.workers = {name: RemoteWorker(name, WorkerLoad(window_tokens)) for name in connect}
        self.tried = threading.Event()
        for worker in self.workers.values():
            self.show(worker)

    def up(self) -> list[RemoteWorker]:
        """The workers that take texts."""
        return [worker for worker in self.workers.values() if worker.load.up]

    def next_attempt_s(self) -> float:
        """Seconds until a worker that is out is asked again."""
        return min(worker.next_attempt for worker in self.workers.values()) - time.monotonic()

    def suspect(self, worker: RemoteWorker) -> None:
        """Have it score the golden texts again, soon; it serves meanwhile."""
        worker.suspicious = True
        worker.attention.set()

    def fail(self, worker: RemoteWorker, failure: WorkerFailed) -> None:
        """Take a worker out, or note why it stays out."""
        if worker.load.up:
            worker.load.up = False
            worker.failures += 1
            _log.warning("engine worker %s is taken out (%s): %s", worker.name, failure.reason, failure)
        elif worker.last_failure == failure.reason:
            return  # told already
        else:
            _log.warning("engine worker %s does not serve (%s): %s", worker.name, failure.reason, failure)
        worker.last_failure = failure.reason
        self._metrics.engine_ejections.labels(worker.name, failure.reason).inc()
        worker.attention.set()
        self.show(worker)
        self._lost(worker, failure.hangs)

    async def watch(self, worker: RemoteWorker) -> None:
        """See to one worker, for ever; to be cancelled."""
        worker.connection = connection = self._connect[worker.name]()
        try:
            while True:
                try:
                    await self._look(worker, connection)
                    if time.monotonic() - worker.up_since >= _STEADY_S:
                        worker.failures = 0
                except WorkerBusy as busy:
                    worker.load.paused_until = time.monotonic() + busy.retry_after_s
                    worker.failures += not worker.load.up
                except WorkerFailed as failure:
                    worker.failures += not worker.load.up
                    self.fail(worker, failure)
                except Exception:
                    _log.exception("looking after engine worker %s failed. This is a bug", worker.name)
                    worker.failures += 1
                worker.tried = True
                if all(other.tried for other in self.workers.values()):
                    self.tried.set()
                await self._rest(worker)
        finally:
            await connection.close()

    async def _look(self, worker: RemoteWorker, connection: Connection) -> None:
        if worker.load.up and not worker.suspicious:
            await connection.probe()
            if connection.queued_tokens == 0:
                worker.load.paused_until = 0.0  # an empty queue takes anything, whatever was estimated before
        else:
            # Who is let in proves that it packs texts rightly; who serves is suspected for a text, and asked little.
            await self._prove(worker, connection, thorough=not worker.load.up)
            worker.suspicious = False
        worker.load.told(connection.queued_tokens)

    async def check(self, timeout_s: float) -> list[Verdict]:
        """Let every worker score the golden texts now. One that fails is taken out, one that passes is let in."""
        return await asyncio.gather(*(self._verdict(worker, timeout_s) for worker in self.workers.values()))

    async def _verdict(self, worker: RemoteWorker, timeout_s: float) -> Verdict:
        try:
            if worker.connection is None:
                raise WorkerBusy(0.0)
            async with asyncio.timeout(timeout_s):
                result = await self._prove(worker, worker.connection, thorough=True)
        except _WrongNumbersError as failure:
            self.fail(worker, failure)
            return Verdict.of(worker.name, failure.check)
        except WorkerFailed as failure:
            self.fail(worker, failure)
            return Verdict(worker.name, "failed" if failure.tells_wrong else "unavailable", str(failure))
        except WorkerBusy:
            return Verdict(worker.name, "unavailable", "it is too busy to score the golden texts")
        except TimeoutError:
            return Verdict(worker.name, "unavailable", f"not done within {timeout_s:g} s")
        return Verdict.of(worker.name, result)

    async def _prove(self, worker: RemoteWorker, connection: Connection, *, thorough: bool) -> SelfCheck:
        """Score the golden texts; who passes is up."""
        result = await connection.check(self._golden, thorough=thorough)
        show(result, self._metrics.engine_self_check_difference, worker.name)
        if not result.passed:
            raise _WrongNumbersError(result)
        if not worker.load.up:
            _log.info("engine worker %s serves: %s", worker.name, result)
            worker.load.up = True
            worker.load.paused_until = 0.0
            worker.up_since = time.monotonic()
            worker.last_failure = None
            self.show(worker)
            self._gained()
        return result

    async def _rest(self, worker: RemoteWorker) -> None:
        """Until it is time to look again; sooner where something happened to it."""
        if worker.load.up:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(worker.attention.wait(), _PROBE_INTERVAL_S)
                if worker.suspicious:
                    await asyncio.sleep(_RECHECK_INTERVAL_S)
        if not worker.is_up():
            pause_s = backoff_s(worker.failures - 1)
            worker.next_attempt = time.monotonic() + pause_s
            await asyncio.sleep(pause_s)
        worker.attention.clear()

    def show(self, worker: RemoteWorker) -> None:
        """Bring the metrics up to date."""
        self._metrics.engine_workers_up.labels(worker.name).set(worker.load.up)
        self._metrics.engine_worker_tokens.labels(worker.name).set(worker.load.tokens)
        if not self._further:
            self._metrics.dependency_up.labels("engine").set(bool(self.up()))
