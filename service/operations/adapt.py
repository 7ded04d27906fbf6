"""Adapting a user to preference pairs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from service.backbone.protocol import Message
from service.errors import QuotaExceeded
from service.mrm import Support, solve
from service.mrm.metrics import bradley_terry_loss, pair_accuracy
from service.mrm.state import FloatArray, UserState
from service.observability.context import in_context
from service.observability.metrics import Metrics
from service.operations.commits import commit
from service.operations.evidence import support_of
from service.operations.serving import ServedCheckpoint, Serving
from service.operations.texts import Text, pair_content_key
from service.operations.turns import Turns
from service.store.records import AdaptOutcome, Idempotency, NewPair, Solution, StoredPair
from service.store.users import Mode, UserRepository


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One choice of a user.

    Attributes:
        messages: The prompt.
        chosen: The completion that the user preferred.
        rejected: The other one.
        strength: How strongly it was felt, on the user's own scale; None for a plain choice.
        id: The caller's name for it, or None: then what it says is its name, and saying it twice changes nothing.
    """

    messages: Sequence[Message]
    chosen: str
    rejected: str
    strength: float | None
    id: str | None


@dataclass(frozen=True, slots=True)
class Adapted:
    """The stored outcome and milliseconds by stage."""

    outcome: AdaptOutcome
    timings_ms: Mapping[str, float]


class Adapt:
    """The use case behind `POST /users/{id}/adapt`.

    The device works before anything is locked; then one transaction stores the pairs, solves and writes the version.
    """

    def __init__(
        self,
        *,
        serving: Serving,
        repository: UserRepository,
        executor: Executor,
        metrics: Metrics,
        turns: Turns,
    ) -> None:
        self._serving = serving
        self._turns = turns
        self._repository = repository
        self._executor = executor
        self._metrics = metrics

    async def __call__(
        self,
        tenant_id: str,
        user_id: str,
        pairs: Sequence[PreferencePair],
        *,
        mode: Mode,
        truncate: bool,
        idempotency_key: str | None = None,
        body: bytes = b"",
    ) -> Adapted:
        """Store `pairs` and adapt the user to all of theirs.

        With an `idempotency_key` the answer is kept, and given again to the same key with the same `body`.

        Raises:
            InvalidInput: Pairs that cannot be scored or whose id means another pair; an Idempotency-Key used before
                with another body. Nothing was stored.
            QuotaExceeded: The tenant's tokens or users are used up. Nothing was stored.
            Overloaded, Unavailable, EngineError: Nothing was stored, except where the database went away after the
                commit: repeat with the same Idempotency-Key to learn which.
        """
        started = time.perf_counter()
        served = self._serving.active
        texts = []
        for i, pair in enumerate(pairs):
            texts.append(Text(pair.messages, pair.chosen, f"pairs[{i}].chosen"))
            texts.append(Text(pair.messages, pair.rejected, f"pairs[{i}].rejected"))
        base = await served.base_rewards.read(tenant_id, texts, truncate=truncate)
        new_pairs = []
        for i, pair in enumerate(pairs):
            chosen, rejected = 2 * i, 2 * i + 1
            content_key = pair_content_key(base.keys[chosen], base.keys[rejected], pair.strength)
            new_pairs.append(
                NewPair(
                    pair_id=pair.id if pair.id is not None else content_key.hex(),
                    content_key=content_key,
                    diff_K=base.rewards_BK[chosen] - base.rewards_BK[rejected],
                    strength=pair.strength,
                )
            )
        idempotency = None
        if idempotency_key is not None:
            idempotency = Idempotency(idempotency_key, hashlib.sha256(body).digest())
        solving = self._metrics.stage("solve")

        def solve_timed(stored: Sequence[StoredPair]) -> Solution:
            # Runs again where the transaction lost to another one: what is told is the solve that was stored.
            solving.begin()
            try:
                return _solve(served, stored)
            finally:
                solving.end()

        with self._metrics.stage("store") as storing:
            storing.attributes = {"pairs": len(new_pairs)}
            # A caller that leaves must not stop a transaction half-way: the thread runs to its end.
            try:
                outcome, _ = await commit(
                    self._executor,
                    in_context(
                        lambda: self._repository.adapt(
                            tenant_id,
                            user_id,
                            new_pairs,
                            mode=mode,
                            heads_id=served.checkpoint.heads_id,
                            checkpoint_id=served.checkpoint_id,
                            idempotency=idempotency,
                            solve=solve_timed,
                        )
                    ),
                    lambda stored: self._serving.publish(stored[1]),
                    turns=self._turns,
                    of=(tenant_id, user_id),
                )
            except QuotaExceeded as error:
                self._metrics.quota_refusals.labels(tenant_id, error.quota).inc()
                raise
            if not outcome.replayed:
                solving.attributes = {"pairs": outcome.pairs_total}
                storing.inner = (solving,)
        self._metrics.adaptations.labels("replayed" if outcome.replayed else "stored").inc()
        if not outcome.replayed:
            self._metrics.pairs_adapted.inc(outcome.pairs_stored)
            before, after = (outcome.report[f"support_loss_{when}"] for when in ("before", "after"))
            if before is not None and after is not None:
                self._metrics.adapt_loss_delta.observe(before - after)
        timings_ms = {"solve": solving.seconds * 1e3, "store": storing.seconds * 1e3}
        if served.base_rewards.tells_times:
            timings_ms |= {"tokenise": base.tokenise_s * 1e3, "engine": base.engine_s * 1e3}
            timings_ms["total"] = (time.perf_counter() - started) * 1e3
        return Adapted(outcome, timings_ms)


def _solve(served: ServedCheckpoint, stored: Sequence[StoredPair]) -> Solution:
    support = support_of(stored, served.checkpoint.heads)
    state = solve(support, served.checkpoint.start)
    report: dict[str, float | None] = {}
    for when, at in (("before", served.users.start), ("after", state)):
        report |= {f"support_{name}_{when}": value for name, value in _fit(support, at).items()}
    return Solution(state.weights_K, state.factor, report)


def _fit(support: Support, state: UserState) -> dict[str, float | None]:
    if len(support) == 0:
        return {"loss": None, "accuracy": None}
    margins_P: FloatArray = support.diffs_PK @ state.weights_K
    return {"loss": bradley_terry_loss(margins_P), "accuracy": pair_accuracy(margins_P)}
