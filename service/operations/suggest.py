"""Which comparison to ask a user for: the one whose answer tells most of their taste."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from service.backbone.protocol import Message
from service.errors import Conflict, Unavailable
from service.mrm.state import FloatArray, UserState
from service.mrm.suggest import suggest
from service.observability.metrics import Metrics
from service.operations.base_reward_requests import BaseRewards
from service.operations.evidence import support_of
from service.operations.serving import ServedCheckpoint, Serving
from service.operations.texts import Text
from service.operations.user_states import Standing
from service.store.users import UserRepository


@dataclass(frozen=True, slots=True)
class Candidate:
    """Completions of one prompt: every two of them could be shown to the user.

    Attributes:
        messages: The prompt.
        completions: At least two.
        field: Path of this candidate in the request, with a trailing dot.
    """

    messages: Sequence[Message]
    completions: Sequence[str]
    field: str


@dataclass(frozen=True, slots=True)
class Question:
    """Two completions to show: indices of the candidate and of both.

    Attributes:
        gain_nats: How much the answer is expected to tell of the user's weights, after the questions before it.
        preference_probability: Calibrated probability that the user prefers a, as known now.
    """

    candidate: int
    a: int
    b: int
    gain_nats: float
    preference_probability: float


@dataclass(frozen=True, slots=True)
class Suggested:
    """Questions in the order in which to ask them, whom they are for, and what was shortened, by candidate."""

    user_id: str
    standing: Standing
    version: int
    questions: list[Question]
    truncated: list[list[int]]
    checkpoint_id: str
    timings_ms: Mapping[str, float]


class Suggest:
    """The use case behind `POST /users/{id}/suggest`. It reads the user, and changes nothing."""

    def __init__(self, *, serving: Serving, repository: UserRepository, executor: Executor, metrics: Metrics) -> None:
        self._serving = serving
        self._repository = repository
        self._executor = executor
        self._metrics = metrics

    async def __call__(
        self,
        tenant_id: str,
        user_id: str,
        candidates: Sequence[Candidate],
        *,
        count: int,
        min_version: int,
        truncate: bool,
    ) -> Suggested:
        """Up to `count` questions, greedily: each tells most after the answers to those before it.

        Two texts that are the same make no question, and neither do two that the user has compared outright.

        Raises:
            InvalidInput: Texts that cannot be scored, each by its field.
            Conflict: The recipe that serves has no posterior; the user has not reached `min_version`.
            Overloaded, Unavailable, EngineError: See `service/errors.py`.
        """
        started = time.perf_counter()
        served = self._serving.active
        if served.users.start.factor is None:
            raise Conflict(
                f"Checkpoint {served.checkpoint_id} knows no uncertainty: its recipe, {served.checkpoint.recipe}, has "
                "no posterior, so that no question can be said to tell more than another. Serve one of the recipe map "
                "(`metareward train` makes it unless told otherwise)."
            )
        texts = [
            Text(candidate.messages, completion, f"{candidate.field}completions[{i}]")
            for candidate in candidates
            for i, completion in enumerate(candidate.completions)
        ]
        # As in scoring: first what can refuse at once.
        looked_up = await served.base_rewards.look_up(tenant_id, texts, truncate=truncate)
        with self._metrics.stage("user") as user_stage:
            user = await served.users.resolve(tenant_id, user_id, min_version)
            asked_PK = await self._asked(served, tenant_id, user_id) if user.standing == "adapted" else None
        base = await served.base_rewards.complete(looked_up)
        sizes = [len(candidate.completions) for candidate in candidates]
        # Milliseconds at most, but others' requests wait for this loop.
        questions = await asyncio.to_thread(_questions, sizes, base, user.state, count, asked_PK)
        self._metrics.suggestions.inc(len(questions))
        timings_ms = served.base_rewards.timings_ms(base, user_stage.seconds, started)
        shortened = set(base.truncated)
        offsets = itertools.accumulate(sizes, initial=0)
        truncated = [
            [i for i in range(size) if start + i in shortened] for start, size in zip(offsets, sizes, strict=False)
        ]
        return Suggested(user_id, user.standing, user.version, questions, truncated, served.checkpoint_id, timings_ms)

    async def _asked(self, served: ServedCheckpoint, tenant_id: str, user_id: str) -> FloatArray | None:
        """Comparisons [P, K] that the user has made outright: to ask again would tell nothing. None: not known now."""
        try:
            stored = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._repository.support, tenant_id, user_id, served.view
            )
        except Unavailable:
            return None  # the user was remembered, and asking twice is better than not at all
        outright = [each for each in stored if each.source is None and each.kind != "rating"]
        return support_of(outright, served.checkpoint.heads).diffs_PK


def _questions(
    sizes: Sequence[int], base: BaseRewards, state: UserState, count: int, asked_PK: FloatArray | None
) -> list[Question]:
    """The best of all pairs of completions, of candidates of these sizes."""
    places: list[tuple[int, int, int]] = []
    rows: list[tuple[int, int]] = []
    start = 0
    for candidate, size in enumerate(sizes):
        for a, b in itertools.combinations(range(size), 2):
            if base.keys[start + a] != base.keys[start + b]:
                places.append((candidate, a, b))
                rows.append((start + a, start + b))
        start += size
    if not rows:
        return []
    first, second = np.array(rows).T
    number = {key: place for place, key in enumerate(base.keys)}
    texts_C2 = np.array([[number[base.keys[a]], number[base.keys[b]]] for a, b in rows])
    found = suggest(base.rewards_BK[first] - base.rewards_BK[second], state, count, asked_PK, texts_C2)
    return [Question(*places[each.index], each.gain_nats, each.probability) for each in found]
