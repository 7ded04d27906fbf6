"""Learning from what a user was seen doing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from service.errors import InvalidInput
from service.observability.metrics import Metrics
from service.operations.base_reward_requests import BaseRewards
from service.operations.changes import Changed, idempotency_of
from service.operations.feedback_events import FeedbackEvent, FeedbackNoise, issues_of, measure_event
from service.operations.said import Measured
from service.operations.telling import Telling
from service.operations.texts import Text
from service.store.records import Append, NewEvidence


class Feedback:
    """The use case behind `POST /users/{id}/feedback`."""

    def __init__(self, *, telling: Telling, noise: FeedbackNoise, metrics: Metrics) -> None:
        self._telling = telling
        self._noise = noise
        self._metrics = metrics

    async def __call__(
        self,
        tenant_id: str,
        user_id: str,
        events: Sequence[FeedbackEvent],
        *,
        truncate: bool,
        idempotency_key: str | None = None,
        body: bytes = b"",
    ) -> Changed:
        """Store what `events` show, and adapt the user to it and to all that was known before.

        With an `idempotency_key` the answer is kept, and given again to the same key with the same `body`.

        Raises:
            InvalidInput: Events that say nothing or that are not taken, each by its field; and as `Telling`.
            QuotaExceeded, Overloaded, Unavailable, EngineError: As `Telling`.
        """
        issues = [issue for event in events for issue in issues_of(event, self._noise)]
        if issues:
            raise InvalidInput(issues)
        texts = [
            Text(event.messages, completion, field)
            for event in events
            for completion, field in zip(event.completions, event.fields, strict=True)
        ]

        def measure(base: BaseRewards) -> list[Measured]:
            found: list[Measured] = []
            first = 0
            for event in events:
                found += measure_event(event, base.keys, base.rewards_BK, first, self._noise)
                first += len(event.completions)
            return found

        def append(items: Sequence[NewEvidence]) -> Append:
            return Append(items, cause="feedback")

        changed = await self._telling(
            tenant_id,
            user_id,
            texts,
            measure,
            append,
            truncate=truncate,
            idempotency=idempotency_of(idempotency_key, "feedback", body),
        )
        if not changed.outcome.replayed:
            for source, count in Counter(event.source for event in events).items():
                self._metrics.feedback_events.labels(source).inc(count)
        return changed
