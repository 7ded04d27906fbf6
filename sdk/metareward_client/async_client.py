"""The client for asyncio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar

from metareward_client import _async, _calls
from metareward_client._base import BaseClient
from metareward_client._call import Call
from metareward_client._config import Config
from metareward_client._many import ScoreMany
from metareward_client._together import wish
from metareward_client._twin import twin
from metareward_client.answers import (
    Adapted,
    Change,
    EvidencePage,
    FeedbackAdapted,
    Info,
    Live,
    Ready,
    Reranked,
    Score,
    Suggestions,
    User,
    UserExport,
    UserPage,
    VersionPage,
)
from metareward_client.client import Client
from metareward_client.requests import Candidate, Event, Pair, PromptLike, Ranking, Rating, ScoreItem

T = TypeVar("T")
JsonLike = Mapping[str, Any]


class AsyncClient(BaseClient):
    """A metareward server, asked from asyncio: `Client`, awaited.

    One client serves event loops that follow each other, and such in threads beside each other; each loop has
    connections of its own. For the arguments see `Client`; a `transport` is an `httpx.AsyncBaseTransport` here.
    """

    def _set_up(self, config: Config) -> None:
        super()._set_up(config)
        self._loops = _async.Loops(config)

    async def _run(self, call: Call[T], deadline: float | None) -> T:
        self._in_this_process()
        return await self._loops.get().run(call, self._config.until(deadline))

    @twin(Client.score)
    async def score(
        self,
        prompt: PromptLike,
        completions: Sequence[str],
        *,
        user_id: str | None = None,
        min_version: int = 0,
        truncate: bool = False,
        return_base_rewards: bool = False,
        return_pairwise: bool = False,
        deadline: float | None = None,
    ) -> Score:
        return await self._run(
            _calls.score(
                prompt,
                completions,
                user_id=user_id,
                min_version=min_version,
                truncate=truncate,
                return_base_rewards=return_base_rewards,
                return_pairwise=return_pairwise,
            ),
            deadline,
        )

    @twin(Client.score_many)
    async def score_many(
        self,
        items: Iterable[ScoreItem | JsonLike],
        *,
        truncate: bool = False,
        return_base_rewards: bool = False,
        return_pairwise: bool = False,
        deadline: float | None = None,
    ) -> list[Score]:
        self._in_this_process()
        until = self._config.until(deadline)
        job = ScoreMany(
            items, truncate=truncate, return_base_rewards=return_base_rewards, return_pairwise=return_pairwise
        )
        loop = self._loops.get()
        if self._limits is None:
            self._limits = (await loop.run(_calls.info(), until)).limits
        calls = job.calls(self._limits, self._config.batch_size)
        answers = await loop.run_all(calls, until)
        return job.in_order(answers)

    @twin(Client.reward)
    async def reward(
        self,
        prompt: PromptLike,
        completion: str,
        *,
        user_id: str | None = None,
        min_version: int = 0,
        truncate: bool = False,
        deadline: float | None = None,
    ) -> float:
        scored = await self._score_gathered(prompt, completion, user_id, min_version, truncate, deadline)
        return scored.rewards[0]

    async def _score_gathered(
        self,
        prompt: PromptLike,
        completion: str,
        user_id: str | None,
        min_version: int,
        truncate: bool,
        deadline: float | None,
    ) -> Score:
        """As `reward`, with what else the server says of it."""
        self._in_this_process()
        until = self._config.until(deadline)
        return await self._loops.get().rewards.reward(
            lambda promise: wish(prompt, completion, user_id, min_version, truncate, until, promise)
        )

    @twin(Client.rerank)
    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        user_id: str | None = None,
        top_n: int | None = None,
        model: str | None = None,
        deadline: float | None = None,
    ) -> Reranked:
        return await self._run(_calls.rerank(query, documents, user_id=user_id, top_n=top_n, model=model), deadline)

    @twin(Client.adapt)
    async def adapt(
        self,
        user_id: str,
        pairs: Iterable[Pair | JsonLike] = (),
        *,
        ratings: Iterable[Rating | JsonLike] = (),
        rankings: Iterable[Ranking | JsonLike] = (),
        mode: Literal["append", "replace"] = "append",
        truncate: bool = False,
        idempotency_key: str | None = None,
        deadline: float | None = None,
    ) -> Adapted:
        """Store what a user said, and adapt their weights to all of it. Everything is stored or nothing.

        Args:
            user_id: Your name for the user.
            pairs: Choices between two completions.
            ratings: Completions that were rated one by one.
            rankings: Completions that were put in order.
            mode: `append` adds to what is stored; `replace` sets all of it aside first.
            truncate: Shorten texts that the backbone cannot read whole, instead of refusing them.
            idempotency_key: Of a call that is made anew after an error: the error's. None: a new one.
            deadline: Seconds that the call may take in all; None: the client's `timeout`.
        """
        call = _calls.adapt(
            user_id,
            pairs=pairs,
            ratings=ratings,
            rankings=rankings,
            mode=mode,
            truncate=truncate,
            idempotency_key=idempotency_key,
        )
        return await self._run(call, deadline)

    @twin(Client.feedback)
    async def feedback(
        self,
        user_id: str,
        events: Iterable[Event | JsonLike],
        *,
        truncate: bool = False,
        idempotency_key: str | None = None,
        deadline: float | None = None,
    ) -> FeedbackAdapted:
        call = _calls.feedback(user_id, events, truncate=truncate, idempotency_key=idempotency_key)
        return await self._run(call, deadline)

    @twin(Client.suggest)
    async def suggest(
        self,
        user_id: str,
        candidates: Iterable[Candidate | JsonLike],
        *,
        count: int = 1,
        min_version: int = 0,
        truncate: bool = False,
        deadline: float | None = None,
    ) -> Suggestions:
        call = _calls.suggest(user_id, candidates, count=count, min_version=min_version, truncate=truncate)
        return await self._run(call, deadline)

    @twin(Client.user)
    async def user(self, user_id: str, *, deadline: float | None = None) -> User:
        return await self._run(_calls.user(user_id), deadline)

    @twin(Client.users)
    async def users(self, *, after: str | None = None, limit: int = 100, deadline: float | None = None) -> UserPage:
        return await self._run(_calls.users(after=after, limit=limit), deadline)

    @twin(Client.versions)
    async def versions(
        self, user_id: str, *, before: int | None = None, limit: int = 100, deadline: float | None = None
    ) -> VersionPage:
        return await self._run(_calls.versions(user_id, before=before, limit=limit), deadline)

    @twin(Client.evidence)
    async def evidence(
        self, user_id: str, *, after: str | None = None, limit: int = 100, deadline: float | None = None
    ) -> EvidencePage:
        return await self._run(_calls.evidence(user_id, after=after, limit=limit), deadline)

    @twin(Client.delete_evidence)
    async def delete_evidence(
        self, user_id: str, ids: Iterable[str], *, idempotency_key: str | None = None, deadline: float | None = None
    ) -> Change:
        return await self._run(_calls.delete_evidence(user_id, ids, idempotency_key=idempotency_key), deadline)

    @twin(Client.rollback)
    async def rollback(
        self, user_id: str, version: int, *, idempotency_key: str | None = None, deadline: float | None = None
    ) -> Change:
        return await self._run(_calls.rollback(user_id, version, idempotency_key=idempotency_key), deadline)

    @twin(Client.reset)
    async def reset(
        self,
        user_id: str,
        *,
        forget: bool = False,
        idempotency_key: str | None = None,
        deadline: float | None = None,
    ) -> Change:
        return await self._run(_calls.reset(user_id, forget=forget, idempotency_key=idempotency_key), deadline)

    @twin(Client.export)
    async def export(self, user_id: str, *, deadline: float | None = None) -> UserExport:
        return await self._run(_calls.export(user_id), deadline)

    @twin(Client.erase)
    async def erase(self, user_id: str, *, deadline: float | None = None) -> None:
        await self._run(_calls.erase(user_id), deadline)

    @twin(Client.info)
    async def info(self, *, deadline: float | None = None) -> Info:
        return await self._run(_calls.info(), deadline)

    @twin(Client.ready)
    async def ready(self, *, deadline: float | None = None) -> Ready:
        return await self._run(_calls.ready(), deadline)

    @twin(Client.live)
    async def live(self, *, deadline: float | None = None) -> Live:
        return await self._run(_calls.live(), deadline)

    @twin(Client.close)
    async def close(self) -> None:
        await self._loops.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
