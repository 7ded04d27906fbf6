"""Every change of what a user said goes this way: its turn, one transaction with a solve in it, and who must know."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from service.errors import Overloaded, QuotaExceeded
from service.observability.context import in_context
from service.observability.metrics import Metrics
from service.operations.commits import commit
from service.operations.drift_watch import DriftWatch
from service.operations.serving import ServedCheckpoint, Serving
from service.operations.solving import Solved, Solver, report_of
from service.operations.turns import Turns
from service.store.records import (
    Append,
    Change,
    ChangeOutcome,
    Delete,
    Idempotency,
    Replace,
    Reset,
    Rollback,
    Solution,
    StoredEvidence,
)
from service.store.users import UserRepository


@dataclass(frozen=True, slots=True)
class Changed:
    """The stored outcome, milliseconds by stage, and the ids of what was told, in its order."""

    outcome: ChangeOutcome
    timings_ms: Mapping[str, float]
    evidence_ids: Sequence[str] = ()


def idempotency_of(key: str | None, operation: str, body: bytes) -> Idempotency | None:
    """The caller's key with what it must not be used for another time: this operation with this body.

    An adapt's hash is that of its body alone, as it was while there was no other operation: its keys are known again.
    """
    if key is None:
        return None
    said = body if operation == "adapt" else b"\0".join([operation.encode(), body])
    return Idempotency(key, hashlib.sha256(said).digest())


class UserChanges:
    """The one writer of users' evidence. Every use case that changes it calls this, once its texts are scored."""

    def __init__(
        self,
        *,
        serving: Serving,
        repository: UserRepository,
        executor: Executor,
        metrics: Metrics,
        turns: Turns,
        solver: Solver,
    ) -> None:
        self._serving = serving
        self._repository = repository
        self._executor = executor
        self._metrics = metrics
        self._turns = turns
        self._solver = solver
        self._drift = DriftWatch(solver=solver, metrics=metrics)

    async def __call__(
        self,
        tenant_id: str,
        user_id: str,
        change: Change,
        served: ServedCheckpoint,
        idempotency: Idempotency | None,
    ) -> Changed:
        """Store a change and the version that it makes, of weights for `served`.

        Raises:
            InvalidInput: Ids that stand for something else; an Idempotency-Key used before for something else.
            NotFound: There is no such user, or no such evidence. New evidence makes the user.
            Conflict: The version to go back to is not kept.
            QuotaExceeded: The tenant may have no more users.
            Overloaded: Too many changes of this user wait.
            Unavailable, EngineError: Nothing was stored, except where the database went away after the commit: repeat
                with the same Idempotency-Key to learn which.
        """
        solving = self._metrics.stage("solve")
        seen: list[tuple[Solved, Sequence[StoredEvidence]]] = []

        def solve(stored: Sequence[StoredEvidence]) -> Solution:
            # Runs again where the transaction lost to another one: what is told is the solve that was stored.
            solving.begin()
            try:
                solved = self._solver(stored, served.checkpoint)
                seen[:] = [(solved, stored)]
                report = report_of(solved, served.users.start)
                return Solution(solved.state.weights_K, solved.state.factor, report)
            finally:
                solving.end()

        with self._metrics.stage("store") as storing:
            storing.attributes = {"pairs": len(change.items) if isinstance(change, Append | Replace) else 0}
            # A caller that leaves must not stop a transaction half-way: the thread runs to its end.
            try:
                outcome, _ = await commit(
                    self._executor,
                    in_context(
                        lambda: self._repository.change(tenant_id, user_id, change, served.view, idempotency, solve)
                    ),
                    lambda stored: self._serving.publish(stored[1], stored[0].left_out),
                    turns=self._turns,
                    of=(tenant_id, user_id),
                )
            except QuotaExceeded as error:
                self._metrics.quota_refusals.labels(tenant_id, error.quota).inc()
                raise
            except Overloaded:
                self._metrics.refusals.labels("user").inc()
                raise
            if not outcome.replayed:
                solving.attributes = {"pairs": outcome.pairs_total}
                storing.inner = (solving,)
        self._count(change, outcome)
        if seen and not outcome.replayed:
            self._drift.note(*seen[0], served.checkpoint)
        return Changed(outcome, {"solve": solving.seconds * 1e3, "store": storing.seconds * 1e3})

    async def rollback(self, tenant_id: str, user_id: str, version: int, idempotency: Idempotency | None) -> Changed:
        """Let that count again which counted in `version`, in a new version.

        Raises:
            See `__call__`.
        """
        return await self(tenant_id, user_id, Rollback(version), self._serving.active, idempotency)

    async def reset(self, tenant_id: str, user_id: str, forget: bool, idempotency: Idempotency | None) -> Changed:
        """Let nothing count any more, in a new version; with `forget` what was said is deleted for good.

        Raises:
            See `__call__`.
        """
        return await self(tenant_id, user_id, Reset(forget), self._serving.active, idempotency)

    async def delete(
        self, tenant_id: str, user_id: str, evidence_ids: Sequence[str], idempotency: Idempotency | None
    ) -> Changed:
        """Delete some of what was said for good, and make a version without it.

        Raises:
            See `__call__`.
        """
        return await self(tenant_id, user_id, Delete(evidence_ids), self._serving.active, idempotency)

    def _count(self, change: Change, outcome: ChangeOutcome) -> None:
        if not outcome.replayed:
            self._metrics.user_changes.labels(outcome.cause).inc()
        if not isinstance(change, Append | Replace):
            return
        self._metrics.adaptations.labels("replayed" if outcome.replayed else "stored").inc()
        if not outcome.replayed:
            self._metrics.pairs_adapted.inc(outcome.pairs_stored)
            before, after = (outcome.report[f"support_loss_{when}"] for when in ("before", "after"))
            if before is not None and after is not None:
                self._metrics.adapt_loss_delta.observe(before - after)
