"""How far the tastes of users who adapt change, as a metric: some of them are looked at, behind their answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from service.checkpoints import Checkpoint
from service.observability.metrics import Metrics
from service.operations.solving import Solved, Solver
from service.store.records import StoredEvidence

logger = logging.getLogger(__name__)

# A look takes milliseconds, or tens of them for a thousand choices: at most some percent of a core.
INTERVAL_S: Final = 1.0


class DriftWatch:
    """Observes the drift of one user a second, or of every one whose solve asked for it. Lives on one event loop."""

    def __init__(self, *, solver: Solver, metrics: Metrics, interval_s: float = INTERVAL_S) -> None:
        self._solver = solver
        self._metrics = metrics
        self._interval_s = interval_s
        self._looked_at = -interval_s

    def note(self, solved: Solved, stored: Sequence[StoredEvidence], checkpoint: Checkpoint) -> None:
        """A solve on `stored` was just committed."""
        if solved.drift is not None:
            self._observe(solved.drift.score)
            return
        now = time.monotonic()
        if now - self._looked_at >= self._interval_s:
            self._looked_at = now
            asyncio.get_running_loop().run_in_executor(None, self._look, stored, checkpoint)

    def _look(self, stored: Sequence[StoredEvidence], checkpoint: Checkpoint) -> None:
        try:
            self._observe(self._solver.taste(stored, checkpoint).drift)
        except Exception:
            logger.exception("the drift of a user could not be judged")

    def _observe(self, drift: float | None) -> None:
        if drift is not None:
            self._metrics.user_drift.observe(drift)
