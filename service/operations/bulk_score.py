"""Scores of rows without end: texts are computed once for all users, many rows at a time, answered in their order."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from service.datasets.candidates import Candidates, Rejected
from service.errors import EngineError, InvalidInput, TemporaryError
from service.operations.score import Scored, ScoreItem, score_item
from service.operations.serving import ServedCheckpoint
from service.operations.texts import Message, Text
from service.operations.user_states import ResolvedUser, UserStates
from service.store.caches import LruCache

T = TypeVar("T")

# Rows that are asked for together: enough for a job of the engine, few enough to be soon answered.
_ASKED_TEXTS: Final = 64
_ASKED_BYTES: Final = 1 << 20
_MOST_BYTES_IN_FLIGHT: Final = 64 << 20
_LOOKUPS_AT_ONCE: Final = 64
_LONGEST_PAUSE_S: Final = 15.0
# Lines between two looks at what the engine has answered.
_LINES_AT_ONCE: Final = 256


class Patience:
    """Waits for what is busy or away, and asks again."""

    def __init__(self, limit_s: float, on_wait: Callable[[TemporaryError, float], None]) -> None:
        """`limit_s`: the longest wait for one answer; `on_wait` is told why, and for how many seconds."""
        self._limit_s = limit_s
        self._on_wait = on_wait

    async def __call__(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` answers in the end.

        Raises:
            TemporaryError: Not within the limit.
        """
        began = time.monotonic()
        while True:
            try:
                return await ask()
            except TemporaryError as error:
                pause_s = min(max(error.retry_after_s, 0.05), _LONGEST_PAUSE_S)
                if time.monotonic() - began + pause_s > self._limit_s:
                    raise
                self._on_wait(error, pause_s)
                await asyncio.sleep(pause_s)


class People(Protocol):
    """Who is scored for."""

    async def find(self, user_id: str | None) -> ResolvedUser:
        """A user; None is the population.

        Raises:
            TemporaryError: They cannot be looked up now.
        """
        ...


class StoredPeople:
    """Users of a tenant, as they are when they are first asked for: a run sees one version of each."""

    def __init__(self, states: UserStates, tenant_id: str, patience: Patience, most: int) -> None:
        """`most`: users remembered; who comes again after so many others is looked up again."""
        self._states = states
        self._tenant_id = tenant_id
        self._patience = patience
        self._found: LruCache[str | None, ResolvedUser] = LruCache(most)

    async def find(self, user_id: str | None) -> ResolvedUser:
        """See `People`."""
        found = self._found.get(user_id)
        if found is None:
            found = await self._patience(lambda: self._states.resolve(self._tenant_id, user_id))
            self._found.put(user_id, found)
        return found


@dataclass(frozen=True, slots=True)
class ScoredLine:
    """One row for one user.

    Attributes:
        row: The row.
        scored: The scores.
        last: Whether it is the row's last one.
    """

    row: Candidates
    scored: Scored
    last: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """A row's base rewards [B, K], which of its completions were shortened, and whom it names, if anybody."""

    row: Candidates
    rewards_BK: npt.NDArray[np.float64]
    truncated: list[int]
    user: ResolvedUser | None


class BulkScore:
    """The use case behind `metareward score`. Lives on one event loop; the checkpoint stays the same."""

    def __init__(
        self,
        *,
        served: ServedCheckpoint,
        tenant_id: str,
        people: People,
        users: Sequence[str | None],
        patience: Patience,
        truncate: bool,
        texts_in_flight: int,
    ) -> None:
        """Scores with one checkpoint.

        Args:
            served: The checkpoint.
            tenant_id: Whose cached texts it sees.
            people: Finds users.
            users: Of rows that name nobody; None is the population.
            patience: Waits for the engine.
            truncate: Whether texts that the backbone cannot read whole are shortened, or their rows rejected.
            texts_in_flight: How many are asked for before the first of them is answered.
        """
        self._served = served
        self._tenant_id = tenant_id
        self._people = people
        self._users = users
        self._patience = patience
        self._truncate = truncate
        self._texts_in_flight = texts_in_flight

    async def __call__(self, rows: Iterable[Candidates | Rejected]) -> AsyncGenerator[ScoredLine | Rejected, None]:
        """Lines in the order of the rows, a row's in the order of its users; what cannot be scored, in its place.

        Raises:
            EngineError: A reward is not finite.
            TemporaryError: The engine or the database stayed away for longer than anybody has patience.
        """
        everybody = await self._find_everybody()
        pending: deque[tuple[asyncio.Task[list[_Read | Rejected]], int, int]] = deque()
        texts = size = lines = 0
        try:
            groups = _groups(rows)
            group = next(groups, None)
            while group is not None or pending:
                while group is not None and (
                    not pending or (texts < self._texts_in_flight and size < _MOST_BYTES_IN_FLIGHT)
                ):
                    pending.append((asyncio.create_task(self._read(group.rows)), group.texts, group.bytes))
                    texts, size = texts + group.texts, size + group.bytes
                    group = next(groups, None)
                task, done_texts, done_size = pending[0]
                answers = await task
                pending.popleft()
                texts, size = texts - done_texts, size - done_size
                for read in answers:
                    if isinstance(read, Rejected):
                        yield read
                        continue
                    who = everybody if read.user is None else [(read.row.user_id, read.user)]
                    for place, (user_id, user) in enumerate(who, 1):
                        yield ScoredLine(read.row, _score(read, user_id, user), place == len(who))
                        lines += 1
                        if lines % _LINES_AT_ONCE == 0:
                            await asyncio.sleep(0)
        finally:
            for task, _, _ in pending:
                task.cancel()
            await asyncio.gather(*(task for task, _, _ in pending), return_exceptions=True)

    async def _find_everybody(self) -> list[tuple[str | None, ResolvedUser]]:
        """`users`, looked up side by side: thousands would take their time."""
        found: list[tuple[str | None, ResolvedUser]] = []
        for begin in range(0, len(self._users), _LOOKUPS_AT_ONCE):
            some = self._users[begin : begin + _LOOKUPS_AT_ONCE]
            found += zip(some, await asyncio.gather(*map(self._people.find, some)), strict=True)
        return found

    async def _read(self, rows: Sequence[Candidates | Rejected]) -> list[_Read | Rejected]:
        """Base rewards of rows; where one cannot be scored, each of them by itself."""
        good = [row for row in rows if isinstance(row, Candidates)]
        texts: list[Text] = []
        for row in good:
            messages: list[Message] = [{"role": role, "content": content} for role, content in row.messages]
            texts += [Text(messages, text, f"completions[{i}]") for i, text in enumerate(row.completions)]
        if not texts:
            return [row for row in rows if isinstance(row, Rejected)]
        try:
            # Nobody's quota is charged: whoever runs this has the database in hand.
            base = await self._patience(
                lambda: self._served.base_rewards.read(self._tenant_id, texts, truncate=self._truncate, metered=False)
            )
        except (InvalidInput, EngineError) as error:
            if len(rows) == 1:
                return [_rejected(good[0], error)]
            return [read for row in rows for read in await self._read([row])]
        named = list(dict.fromkeys(row.user_id for row in good if row.user_id is not None))
        users = dict(zip(named, await asyncio.gather(*map(self._people.find, named)), strict=True))
        shortened = set(base.truncated)
        answers: list[_Read | Rejected] = []
        begin = 0
        for each in rows:
            if isinstance(each, Rejected):
                answers.append(each)
                continue
            end = begin + len(each.completions)
            truncated = [i - begin for i in range(begin, end) if i in shortened]
            user = None if each.user_id is None else users[each.user_id]
            answers.append(_Read(each, base.rewards_BK[begin:end], truncated, user))
            begin = end
        return answers


@dataclass(slots=True)
class _Group:
    """Rows that are asked for together."""

    rows: list[Candidates | Rejected]
    texts: int = 0
    bytes: int = 0


def _groups(rows: Iterable[Candidates | Rejected]) -> Iterator[_Group]:
    group = _Group([])
    for row in rows:
        group.rows.append(row)
        if isinstance(row, Candidates):
            group.texts += len(row.completions)
            group.bytes += len(row.content)
        if group.texts >= _ASKED_TEXTS or group.bytes >= _ASKED_BYTES or len(group.rows) >= _ASKED_TEXTS:
            yield group
            group = _Group([])
    if group.rows:
        yield group


def _score(read: _Read, user_id: str | None, user: ResolvedUser) -> Scored:
    messages: list[Message] = []
    return score_item(
        ScoreItem(user_id, messages, read.row.completions), user, read.rewards_BK, read.truncated, False, False
    )


def _rejected(row: Candidates, error: InvalidInput | EngineError) -> Rejected:
    return Rejected(row.line, str(error), row.content, row.mark)
