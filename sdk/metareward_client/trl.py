"""Rewards of single users for TRL's trainers (GRPO, RLOO and whatever else takes `reward_funcs`).

    trainer = GRPOTrainer(model, reward_funcs=reward_function(), train_dataset=dataset)

`dataset` has a column `user_id` beside `prompt`. The names of the arguments below are TRL's (1.16: `GRPOTrainer` and
`RLOOTrainer._calculate_rewards`): it calls a reward function with `prompts`, `completions`, `completion_ids`,
`trainer_state`, `log_extra`, `log_metric` and every column of the data set, in each process with that process's rows.
TRL itself is not imported.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args, overload

from metareward_client import AsyncClient, Client, FieldError, MetarewardError, RequestError, Score, ScoreItem
from metareward_client._rows import Conversation, average_probability, conversation_and_answer, hashable, user_id_of

OnMissingUser: TypeAlias = Literal["population", "none", "error"]
OnFailure: TypeAlias = Literal["raise", "none"]
Scale: TypeAlias = Literal["raw", "probability"]

PATIENCE_S = 10.0
"""After this much waiting a call says so once: a server that nobody started must not look like a step that is slow."""

_log = logging.getLogger(__name__)


@overload
def reward_function(
    client_or_url: Client | str | None = None,
    *,
    user_column: str | None = ...,
    prompt_column: str | None = ...,
    default_user: str | None = ...,
    on_missing_user: OnMissingUser = ...,
    on_failure: OnFailure = ...,
    timeout: float = ...,
    scale: Scale = ...,
    visible: Callable[[str], str] | None = ...,
    truncate: bool = ...,
    name: str = ...,
    api_key: str | None = ...,
    asynchronous: Literal[False] = ...,
) -> RewardFunction: ...


@overload
def reward_function(
    client_or_url: AsyncClient | str | None = None,
    *,
    user_column: str | None = ...,
    prompt_column: str | None = ...,
    default_user: str | None = ...,
    on_missing_user: OnMissingUser = ...,
    on_failure: OnFailure = ...,
    timeout: float = ...,
    scale: Scale = ...,
    visible: Callable[[str], str] | None = ...,
    truncate: bool = ...,
    name: str = ...,
    api_key: str | None = ...,
    asynchronous: Literal[True],
) -> AsyncRewardFunction: ...


def reward_function(
    client_or_url: Client | AsyncClient | str | None = None,
    *,
    user_column: str | None = "user_id",
    prompt_column: str | None = None,
    default_user: str | None = None,
    on_missing_user: OnMissingUser = "population",
    on_failure: OnFailure = "raise",
    timeout: float = 300.0,
    scale: Scale = "raw",
    visible: Callable[[str], str] | None = None,
    truncate: bool = True,
    name: str = "personal_reward",
    api_key: str | None = None,
    asynchronous: bool = False,
) -> RewardFunction | AsyncRewardFunction:
    """A reward function for TRL: each completion's reward for the user of its row.

    Args:
        client_or_url: The server's address, or a client of it (`AsyncClient` with `asynchronous`). None:
            METAREWARD_URL, then http://127.0.0.1:8000.
        user_column: The data set's column that says whose reward it is. None: there is none, and every row is
            `default_user`'s or the population's.
        prompt_column: A column that the reward model reads instead of `prompt`: where the policy's prompt also tells it
            for whom it writes, or how.
        default_user: Stands in for a missing user.
        on_missing_user: What a row without a user gets where there is no `default_user`: the reward of the
            `population` (the meta-learned start: what people have in common), `none` (None: TRL leaves this function
            out of the row's reward) or `error`.
        on_failure: What becomes of a batch for which the server did not answer within `timeout`: `raise` the client's
            error, or `none`: every reward of the batch is None. What the server refuses for good (a bad user id, a
            wrong key) is raised in either case, because it would be refused in every step.
        timeout: Seconds that one call waits for the server in all, while it restarts or is overloaded.
        scale: `raw` log-odds, or the `probability` (0 to 1) that the user prefers the completion to the average text
            of the training data, for mixing with rewards of that range.
        visible: What of a completion's text the user gets to see, e.g. what follows "</think>". All of it by default.
        truncate: Shorten texts that the backbone cannot read whole instead of failing.
        name: `__name__` of the function: TRL logs `rewards/<name>/mean`.
        api_key: Of the role `score`; METAREWARD_API_KEY by default.
        asynchronous: Make a coroutine function; TRL runs all of those concurrently.

    Returns:
        A callable that can be pickled and used behind a fork, as its client can.

    Raises:
        ValueError: An option has a value that it cannot have.
        TypeError: The client is of the other kind.
    """
    options = _Options(
        user_column=user_column,
        prompt_column=prompt_column,
        default_user=default_user,
        on_missing_user=on_missing_user,
        on_failure=on_failure,
        timeout=timeout,
        scale=scale,
        visible=visible,
        truncate=truncate,
        name=name,
    )
    if isinstance(client_or_url, Client | AsyncClient) and api_key is not None:
        raise ValueError("api_key goes into the client, where a client is given")
    if asynchronous:
        if isinstance(client_or_url, Client):
            raise TypeError("asynchronous=True needs an AsyncClient or a URL")
        if not isinstance(client_or_url, AsyncClient):
            client_or_url = AsyncClient(client_or_url, api_key=api_key)
        return AsyncRewardFunction(client_or_url, options)
    if isinstance(client_or_url, AsyncClient):
        raise TypeError("an AsyncClient needs asynchronous=True")
    if not isinstance(client_or_url, Client):
        client_or_url = Client(client_or_url, api_key=api_key)
    return RewardFunction(client_or_url, options)


@dataclass(frozen=True)
class _Options:
    """The arguments of `reward_function` that do not say where the server is."""

    user_column: str | None
    prompt_column: str | None
    default_user: str | None
    on_missing_user: OnMissingUser
    on_failure: OnFailure
    timeout: float
    scale: Scale
    visible: Callable[[str], str] | None
    truncate: bool
    name: str

    def __post_init__(self) -> None:
        for option, known in (("on_missing_user", OnMissingUser), ("on_failure", OnFailure), ("scale", Scale)):
            if getattr(self, option) not in get_args(known):
                raise ValueError(f"{option} must be one of {', '.join(get_args(known))}")
        if not self.timeout > 0:
            raise ValueError("timeout must be above 0 seconds")


@dataclass(frozen=True)
class _Batch:
    """One call's rows as items to score; `places[row]` is where its reward will be, None where it gets none."""

    items: list[ScoreItem]
    places: list[tuple[int, int] | None]

    def in_rows(self, path: str) -> str:
        """A path into the items as one into the rows, which are what the caller knows."""
        match = re.match(r"items\[(\d+)\](?:\.completions\[(\d+)\])?", path)
        place = (int(match[1]), int(match[2] or 0)) if match else None
        if match is None or place not in self.places:
            return path
        return f"rows[{self.places.index(place)}]{'.completion' if match[2] else ''}{path[match.end() :]}"


@dataclass(frozen=True)
class _Group:
    """An item that grows: rows with one user and one conversation."""

    index: int
    user: str | None
    conversation: Conversation
    texts: list[str] = field(default_factory=list)


class _PersonalReward:
    """What both functions share: rows to items, answers to rewards, and what is logged."""

    def __init__(self, client: Client | AsyncClient, options: _Options) -> None:
        self._about = repr(client)
        self._options = options
        # Where TRL reads the name that it logs under.
        self.__name__ = self.__qualname__ = options.name

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self._options).items())
        return f"{type(self).__name__}({self._about}, {options})"

    def _batch(self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]) -> _Batch:
        """Rows of one user and prompt are one item: the server computes a prompt once for all its completions."""
        users = self._users(len(prompts), columns)
        if self._options.prompt_column is not None:
            prompts = _column(columns, self._options.prompt_column, "prompt_column")
        places: list[tuple[int, int] | None] = []
        groups: dict[Hashable, _Group] = {}
        for row, (user, prompt, completion) in enumerate(zip(users, prompts, completions, strict=True)):
            if user is None and self._options.on_missing_user == "none":
                places.append(None)
                continue
            if user is None and self._options.on_missing_user == "error":
                raise ValueError(
                    f"row {row} of the batch has no user in the column {self._options.user_column!r}: give it one, or "
                    "choose default_user or on_missing_user"
                )
            try:
                conversation, text = conversation_and_answer(prompt, completion)
            except (AttributeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"row {row} of the batch: {self._options.prompt_column or 'prompt'} and completion must each be a "
                    "text or a list of messages with role and content"
                ) from error
            group = groups.setdefault((user, hashable(conversation)), _Group(len(groups), user, conversation))
            places.append((group.index, len(group.texts)))
            group.texts.append(self._options.visible(text) if self._options.visible else text)
        items = [
            ScoreItem(prompt=group.conversation, completions=group.texts, user_id=group.user)
            for group in groups.values()
        ]
        return _Batch(items, places)

    def _users(self, rows: int, columns: Mapping[str, Any]) -> list[str | None]:
        options = self._options
        if options.user_column is None:
            return [options.default_user] * rows
        # A misspelled column must not pass for a data set of nobody.
        users = (user_id_of(value) for value in _column(columns, options.user_column, "user_column"))
        return [options.default_user if user is None else user for user in users]

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        about = "%s: no answer yet from %s after %.0f s; giving it %.0f s in all"
        timer = threading.Timer(
            PATIENCE_S, _log.warning, (about, self.__name__, self._about, PATIENCE_S, self._options.timeout)
        )
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _failed(self, error: MetarewardError, batch: _Batch) -> None:
        """Go on without rewards, if the caller chose so and asking again may help."""
        if isinstance(error, RequestError):
            error.errors = tuple(FieldError(batch.in_rows(field), message) for field, message in error.errors)
            raise error
        if self._options.on_failure == "raise":
            raise error
        _log.warning("%s: a batch gets no rewards: %s", self.__name__, error)

    def _rewards(
        self,
        batch: _Batch,
        scores: Sequence[Score] | None,
        seconds: float,
        log_metric: Callable[[str, float], None] | None,
        log_extra: Callable[[str, list[Any]], None] | None,
    ) -> list[float | None]:
        """Rewards of the rows; tells TRL how they came about, beside its own metrics and in the completions' table."""
        found: list[tuple[Score, int] | None]
        if scores is None:
            found = [None] * len(batch.places)
        else:
            found = [None if place is None else (scores[place[0]], place[1]) for place in batch.places]
        if log_metric is not None and found:
            metrics = {"seconds": seconds, "none_share": found.count(None) / len(found)}
            metrics |= _shares([each for each in found if each is not None])
            for name, value in metrics.items():
                log_metric(f"rewards/{self.__name__}/{name}", value)
        if log_extra is not None:
            # TRL adds what two functions log under one name to one column, which is then too long.
            log_extra(f"{self.__name__}/user_state", [None if each is None else each[0].user_state for each in found])
        rewards = [None if each is None else each[0].rewards[each[1]] for each in found]
        if self._options.scale == "probability":
            return [None if reward is None else average_probability(reward) for reward in rewards]
        return rewards


class RewardFunction(_PersonalReward):
    """Made by `reward_function`. Threads may share it, and a forked or pickled one makes connections of its own."""

    def __init__(self, client: Client, options: _Options) -> None:
        super().__init__(client, options)
        self._client = client

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Rewards `[rows]`, in their order.

        Raises:
            MetarewardError: The server refused, or did not answer in time and `on_failure` is `raise`.
            ValueError: A row has no user, or an id that is none.
        """
        options, started = self._options, time.monotonic()
        batch = self._batch(prompts, completions, columns)
        scores: list[Score] | None = None
        try:
            # A data set may mix rows with a user and rows for other reward functions: then a batch may hold none.
            if batch.items:
                with self._waiting():
                    scores = self._client.score_many(batch.items, truncate=options.truncate, deadline=options.timeout)
        except MetarewardError as error:
            self._failed(error, batch)
        return self._rewards(batch, scores, time.monotonic() - started, log_metric, log_extra)


class AsyncRewardFunction(_PersonalReward):
    """Made by `reward_function(asynchronous=True)`: awaited, on any event loop."""

    def __init__(self, client: AsyncClient, options: _Options) -> None:
        super().__init__(client, options)
        self._client = client

    async def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Rewards `[rows]`, in their order; raises as `RewardFunction` does."""
        options, started = self._options, time.monotonic()
        batch = self._batch(prompts, completions, columns)
        scores: list[Score] | None = None
        try:
            # A data set may mix rows with a user and rows for other reward functions: then a batch may hold none.
            if batch.items:
                with self._waiting():
                    scores = await self._client.score_many(
                        batch.items, truncate=options.truncate, deadline=options.timeout
                    )
        except MetarewardError as error:
            self._failed(error, batch)
        return self._rewards(batch, scores, time.monotonic() - started, log_metric, log_extra)


def _column(columns: Mapping[str, Any], name: str, option: str) -> Sequence[Any]:
    if name not in columns:
        raise ValueError(
            f"the data set has no column {name!r}: name another with {option}, or {option}=None to do without; "
            "remove_unused_columns=True takes columns away"
        )
    values: Sequence[Any] = columns[name]
    return values


def _shares(scored: Sequence[tuple[Score, int]]) -> dict[str, float]:
    """Metrics over completions: whose rewards they are, how sure of, and whether their texts were read whole."""
    if not scored:
        return {}
    metrics = {
        f"{state}_share": sum(score.user_state == state for score, _ in scored) / len(scored)
        for state in ("cold_start", "population", "stale")
    }
    metrics["truncated_share"] = sum(index in score.truncated for score, index in scored) / len(scored)
    stds = [score.reward_std[index] for score, index in scored if score.reward_std is not None]
    if stds:
        metrics["posterior_std"] = math.fsum(stds) / len(stds)
    return metrics
