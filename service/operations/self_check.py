"""The self-check of an engine that serves: on demand, now and then, and what becomes of the process where it fails."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from service.errors import EngineError, MetarewardError
from service.observability.metrics import WorkerMetrics
from service.operations.engine import Engine
from service.worker.selfcheck import GoldenRecord, Question, Rewards, Verdict, judge, questions, show

logger = logging.getLogger(__name__)

# Who asks again so soon gets the same answer: the device has other work.
REST_S: Final = 1.0
# An engine that failed is asked again this often, so that it can come back without anybody's doing.
RECHECK_S: Final = 30.0
HERE: Final = "here"


@dataclass(frozen=True, slots=True)
class Report:
    """What a self-check found.

    Attributes:
        verdicts: One for each worker; a single one where the worker runs in this process.
        seconds: What it took.
        ended_at: When that was, in seconds since 1970.
    """

    verdicts: Sequence[Verdict]
    seconds: float
    ended_at: float

    @property
    def passed(self) -> bool:
        """Whether every worker did."""
        return all(verdict.status == "passed" for verdict in self.verdicts)

    def as_json(self) -> dict[str, Any]:
        """What both front doors answer."""
        return {
            "passed": self.passed,
            "workers": [verdict.as_json() for verdict in self.verdicts],
            "seconds": round(self.seconds, 3),
            "ended_at": self.ended_at,
        }


class SelfChecks:
    """The use case behind the routes. Lives on one event loop.

    One check runs at a time, in the engine's own queue; who asks meanwhile waits for it.
    """

    def __init__(
        self,
        check: Callable[[], Awaitable[Sequence[Verdict]]],
        metrics: WorkerMetrics,
        *,
        interval_s: float = 0.0,
        rest_s: float = REST_S,
        recheck_s: float = RECHECK_S,
    ) -> None:
        """Nothing runs before it is called.

        Args:
            check: Asks every engine there is; raises nothing that is an Exception but bugs.
            metrics: Where to count.
            interval_s: How often `repeat` asks; 0 for only while an engine fails.
            rest_s: For how long an answer is given again.
            recheck_s: How often `repeat` asks while an engine fails.
        """
        self._check = check
        self._metrics = metrics
        self._interval_s = interval_s
        self._rest_s = rest_s
        self._recheck_s = recheck_s
        self._running: asyncio.Task[Report] | None = None
        self._last: tuple[float, Report] | None = None
        self._changed = asyncio.Event()
        metrics.self_check_passed.set(1)
        self.failure: str | None = None
        """What the last check that came to a verdict found wrong; None where nothing was."""

    async def __call__(self) -> Report:
        """Check, or wait for the check that runs. Whoever leaves, it goes on to its end."""
        if self._running is None or self._running.done():
            if self._last is not None and time.monotonic() - self._last[0] < self._rest_s:
                return self._last[1]
            self._running = asyncio.create_task(self._run())
        return await asyncio.shield(self._running)

    async def repeat(self) -> None:
        """Check now and then, for ever; to be cancelled. A little early or late: replicas start together."""
        while True:
            pause_s = self._recheck_s if self.failure is not None else self._interval_s * random.uniform(0.75, 1.25)
            try:
                await asyncio.wait_for(self._changed.wait(), pause_s or None)
            except TimeoutError:
                try:
                    await self()
                except Exception:
                    logger.exception("the self-check could not be made. This is a bug")
            self._changed.clear()

    async def close(self) -> None:
        """End what runs."""
        if self._running is not None and not self._running.done():
            self._running.cancel()
            await asyncio.wait([self._running])

    async def _run(self) -> Report:
        began = time.monotonic()
        verdicts = await self._check()
        ended = time.monotonic()
        report = Report(verdicts, ended - began, time.time())
        for verdict in verdicts:
            self._metrics.self_checks.labels(verdict.status).inc()
        self._conclude(report)
        self._last = (ended, report)
        return report

    def _conclude(self, report: Report) -> None:
        failed = [verdict for verdict in report.verdicts if verdict.status == "failed"]
        for verdict in failed:
            logger.error("self-check of the engine (%s) failed: %s", verdict.worker, verdict.detail)
        before = self.failure
        if failed:
            self.failure = "; ".join(verdict.detail for verdict in failed)
        elif any(verdict.status == "passed" for verdict in report.verdicts):
            # A remote worker that failed and does not answer now is out anyway, until it proves itself.
            self.failure = None
            told = "; ".join(f"{verdict.worker}: {verdict.detail}" for verdict in report.verdicts)
            logger.info("self-check passed%s: %s", "" if before is None else " again", told)
        if (before is None) != (self.failure is None):
            self._changed.set()
        self._metrics.self_check_passed.set(self.failure is None)


async def check_engine(
    engine: Engine,
    golden: GoldenRecord,
    heads: int,
    *,
    timeout_s: float,
    metrics: WorkerMetrics | None = None,
    columns: slice = slice(None),
    name: str = HERE,
) -> Verdict:
    """Ask the engine of this process, in its queue like anybody.

    Args:
        engine: What runs.
        golden: What it must answer; `golden.dtype` is what it computes in.
        heads: K.
        timeout_s: The longest time for all of it.
        metrics: Where the figures go.
        columns: Where the base rewards in question stand in the engine's answers.
        name: What the verdict calls the engine.
    """
    try:
        async with asyncio.timeout(timeout_s):
            answers = [await _answer(engine, question, heads, timeout_s, columns) for question in questions(golden)]
    except TimeoutError:
        return Verdict(name, "unavailable", f"not done within {timeout_s:g} s")
    except MetarewardError as error:
        return Verdict(name, "unavailable", str(error))
    check = judge(golden, answers)
    if metrics is not None:
        show(check, metrics.self_check_difference)
    return Verdict.of(name, check)


async def _answer(engine: Engine, question: Question, heads: int, timeout_s: float, columns: slice) -> Rewards:
    futures = engine.submit(question.texts, scope=question.scope, deadline=time.monotonic() + timeout_s)
    found = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
    rows = []
    for row in found:
        if isinstance(row, EngineError):  # the device failed on a text that it must know, or its numbers are not finite
            rows.append(np.full(heads, np.nan))
        elif isinstance(row, BaseException):
            raise row
        else:
            rows.append(row[columns])
    return np.stack(rows)
