"""The blocking client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar

from metareward_client import _calls, _sync
from metareward_client._base import BaseClient
from metareward_client._call import Call
from metareward_client._config import Config
from metareward_client._many import ScoreMany
from metareward_client._sync_rewards import Rewards
from metareward_client._together import wish
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
from metareward_client.requests import Candidate, Event, Pair, PromptLike, Ranking, Rating, ScoreItem

T = TypeVar("T")
JsonLike = Mapping[str, Any]


class Client(BaseClient):
    """A metareward server, asked from any number of threads; `AsyncClient` is its twin for asyncio.

    Connections are kept and shared. A client may be used behind a fork, and pickled: the copy makes connections of its
    own from the same settings, the API key among them.

    Every method takes `deadline`: the seconds that it may take in all, waits and repetitions included. Until then it
    repeats what failed for a while (429, 502, 503, 504, broken connections) as long as that is safe, and waits as the
    server asks (Retry-After). Changes of users carry an Idempotency-Key, so that they are made once however often they
    are sent. See `errors` for what is raised.

    Args:
        base_url: Where the server is, with a path prefix if there is one; None: METAREWARD_URL, else
            http://127.0.0.1:8000.
        api_key: None: METAREWARD_API_KEY, else no key is sent.
        timeout: Seconds that a call may take in all, where it is not given a `deadline`.
        max_retries: Most times that a call is repeated; None: as often as there is time.
        max_connections: Most connections at a time; calls beyond them wait for one.
        max_concurrency: Most requests that `score_many`, and all `reward` together, have under way at a time.
        batch_size: Most completions in one request of those two, within the server's own limit.
        batch_window_s: How long `reward` waits for others to travel with, in seconds.
        headers: Sent with every request.
        verify: Of HTTPS: whether certificates are checked, or an `ssl.SSLContext` that says how.
        transport: An `httpx.BaseTransport` of your own, of `AsyncClient` an `httpx.AsyncBaseTransport`.

    Raises:
        ValueError: A setting is impossible.
    """

    def _set_up(self, config: Config) -> None:
        super()._set_up(config)
        self._connections = _sync.Connections(config)
        self._rewards = Rewards(self._ask, config.batch_size, config.batch_window_s, config.max_concurrency)

    def _ask(self, call: Call[T], until: float) -> T:
        return _sync.run(self._connections, self._config, call, until)

    def _run(self, call: Call[T], deadline: float | None) -> T:
        self._in_this_process()
        return self._ask(call, self._config.until(deadline))

    def score(
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
        """Reward the completions of a prompt as one user would.

        Args:
            prompt: A text, or chat messages of which the last is the user's.
            completions: Candidate responses to it.
            user_id: None: nobody in particular, the population.
            min_version: Least version of the user to score with.
            truncate: Shorten texts that the backbone cannot read whole, instead of refusing them.
            return_base_rewards: Also answer the K base rewards of each completion.
            return_pairwise: Also answer probabilities and deviations for every two completions.
            deadline: Seconds that the call may take in all; None: the client's `timeout`.
        """
        return self._run(
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

    def score_many(
        self,
        items: Iterable[ScoreItem | JsonLike],
        *,
        truncate: bool = False,
        return_base_rewards: bool = False,
        return_pairwise: bool = False,
        deadline: float | None = None,
    ) -> list[Score]:
        """Reward the completions of many prompts, each as one user would; the answers are in the order of the items.

        Items are parted into requests within the server's limits, those of one prompt together, of which
        `max_concurrency` are under way at a time. The first failure ends it.

        Args:
            items: Prompts with their completions, and for whom.
            truncate: Shorten texts that the backbone cannot read whole, instead of refusing them.
            return_base_rewards: Also answer the K base rewards of each completion.
            return_pairwise: Also answer probabilities and deviations for every two completions of an item.
            deadline: Seconds that all of it may take; None: the client's `timeout`.
        """
        self._in_this_process()
        until = self._config.until(deadline)
        job = ScoreMany(
            items, truncate=truncate, return_base_rewards=return_base_rewards, return_pairwise=return_pairwise
        )
        if self._limits is None:
            self._limits = self._ask(_calls.info(), until).limits
        calls = job.calls(self._limits, self._config.batch_size)
        answers = _sync.run_all(self._connections, self._config, calls, until)
        return job.in_order(answers)

    def reward(
        self,
        prompt: PromptLike,
        completion: str,
        *,
        user_id: str | None = None,
        min_version: int = 0,
        truncate: bool = False,
        deadline: float | None = None,
    ) -> float:
        """The reward of one completion, in log-odds; what is asked at the same time travels in one request.

        For programs that can only ask one by one, from many threads or tasks. Who has all completions at hand is
        faster with `score_many`.

        Args:
            prompt: A text, or chat messages of which the last is the user's.
            completion: A response to it.
            user_id: None: nobody in particular, the population.
            min_version: Least version of the user to score with.
            truncate: Shorten texts that the backbone cannot read whole, instead of refusing them.
            deadline: Seconds that the call may take in all; None: the client's `timeout`.
        """
        return self._score_gathered(prompt, completion, user_id, min_version, truncate, deadline).rewards[0]

    def _score_gathered(
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
        return self._rewards.reward(
            lambda promise: wish(prompt, completion, user_id, min_version, truncate, until, promise)
        )

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        user_id: str | None = None,
        top_n: int | None = None,
        model: str | None = None,
        deadline: float | None = None,
    ) -> Reranked:
        """Order documents by how much a user would like each as the answer to a query.

        Args:
            query: What was asked.
            documents: What may answer it.
            user_id: None: nobody in particular, the population.
            top_n: Answer the best ones only.
            model: Name or id of a loaded checkpoint; None: the one that answers.
            deadline: Seconds that the call may take in all; None: the client's `timeout`.
        """
        return self._run(_calls.rerank(query, documents, user_id=user_id, top_n=top_n, model=model), deadline)

    def adapt(
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
        return self._run(call, deadline)

    def feedback(
        self,
        user_id: str,
        events: Iterable[Event | JsonLike],
        *,
        truncate: bool = False,
        idempotency_key: str | None = None,
        deadline: float | None = None,
    ) -> FeedbackAdapted:
        """Store what a user was seen doing as comparisons, and adapt their weights to all that is known of them.

        Args:
            user_id: Your name for the user.
            events: `Chosen`, `Regenerated`, `Copied`, `Edited`, `Dwell`, `Thumbs`, in any order.
            truncate: Shorten texts that the backbone cannot read whole, instead of refusing them.
            idempotency_key: Of a call that is made anew after an error: the error's. None: a new one.
            deadline: Seconds that the call may take in all; None: the client's `timeout`.
        """
        call = _calls.feedback(user_id, events, truncate=truncate, idempotency_key=idempotency_key)
        return self._run(call, deadline)

    def suggest(
        self,
        user_id: str,
        candidates: Iterable[Candidate | JsonLike],
        *,
        count: int = 1,
        min_version: int = 0,
        truncate: bool = False,
        deadline: float | None = None,
    ) -> Suggestions:
        """Of all pairs of completions, those whose comparison by this user would tell most of their taste.

        Args:
            user_id: Your name for the user.
            candidates: Completions that could be shown.
            count: Most questions to suggest.
            min_version: Least version of the user to ask about.
            truncate: Shorten texts that the backbone cannot read whole, instead of refusing them.
            deadline: Seconds that the call may take in all; None: the client's `timeout`.
        """
        call = _calls.suggest(user_id, candidates, count=count, min_version=min_version, truncate=truncate)
        return self._run(call, deadline)

    def user(self, user_id: str, *, deadline: float | None = None) -> User:
        """Version, weights and number of statements of a user, and whether their taste changes."""
        return self._run(_calls.user(user_id), deadline)

    def users(self, *, after: str | None = None, limit: int = 100, deadline: float | None = None) -> UserPage:
        """Users who have adapted, in the order of their ids: the page behind `after`."""
        return self._run(_calls.users(after=after, limit=limit), deadline)

    def versions(
        self, user_id: str, *, before: int | None = None, limit: int = 100, deadline: float | None = None
    ) -> VersionPage:
        """Versions of a user that are kept, the newest first: the page before version `before`."""
        return self._run(_calls.versions(user_id, before=before, limit=limit), deadline)

    def evidence(
        self, user_id: str, *, after: str | None = None, limit: int = 100, deadline: float | None = None
    ) -> EvidencePage:
        """What a user said, in the order of ids: the page behind `after`."""
        return self._run(_calls.evidence(user_id, after=after, limit=limit), deadline)

    def delete_evidence(
        self, user_id: str, ids: Iterable[str], *, idempotency_key: str | None = None, deadline: float | None = None
    ) -> Change:
        """Delete statements for good, all of `ids` or none, and solve without them."""
        return self._run(_calls.delete_evidence(user_id, ids, idempotency_key=idempotency_key), deadline)

    def rollback(
        self, user_id: str, version: int, *, idempotency_key: str | None = None, deadline: float | None = None
    ) -> Change:
        """Let exactly that count again which counted in an earlier version, in a new version."""
        return self._run(_calls.rollback(user_id, version, idempotency_key=idempotency_key), deadline)

    def reset(
        self,
        user_id: str,
        *,
        forget: bool = False,
        idempotency_key: str | None = None,
        deadline: float | None = None,
    ) -> Change:
        """Set aside all that a user said, in a new version; with `forget` delete it for good."""
        return self._run(_calls.reset(user_id, forget=forget, idempotency_key=idempotency_key), deadline)

    def export(self, user_id: str, *, deadline: float | None = None) -> UserExport:
        """Everything that is stored of a user, as of one moment."""
        return self._run(_calls.export(user_id), deadline)

    def erase(self, user_id: str, *, deadline: float | None = None) -> None:
        """Erase a user for good.

        This takes no Idempotency-Key, so it is repeated only where it surely did not reach the server. After an error
        call it again: `NotFound` says that the user is gone.
        """
        self._run(_calls.erase(user_id), deadline)

    def info(self, *, deadline: float | None = None) -> Info:
        """The checkpoint that answers, its backbone, what else is loaded, and limits."""
        return self._run(_calls.info(), deadline)

    def ready(self, *, deadline: float | None = None) -> Ready:
        """Whether the server can take traffic; waits for a server that is not there yet until the time is up."""
        return self._run(_calls.ready(), deadline)

    def live(self, *, deadline: float | None = None) -> Live:
        """Whether the process runs; waits for one that is not there yet until the time is up."""
        return self._run(_calls.live(), deadline)

    def close(self) -> None:
        """Close every connection; the client cannot be used afterwards."""
        self._connections.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
