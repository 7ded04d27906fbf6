"""Single scores of many callers as one request: what is asked, who gets which answer, and who is to blame.

Without I/O; `_sync_rewards` and `_async_rewards` gather the wishes and send the batches.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Sequence
from concurrent.futures import InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Protocol

from metareward_client import _calls
from metareward_client._call import Call, checked, json_of
from metareward_client.answers import Score
from metareward_client.errors import DeadlineExceeded, FieldError, InvalidRequest, RequestError
from metareward_client.requests import ScoreItem

_ITEM = re.compile(r"^items\[(\d+)\]\.")
_FIELD = re.compile(r"items\[(\d+)\](?:\.completions\[(\d+)\])?.*")


class Promise(Protocol):
    """What a caller waits for: a future of asyncio or of a thread."""

    def done(self) -> bool:
        """Whether nobody waits any more."""
        ...

    def set_result(self, result: Score, /) -> None:
        """Answer."""
        ...

    def set_exception(self, exception: BaseException, /) -> None:
        """Fail."""
        ...

    def cancel(self) -> bool:
        """Let nobody wait any more."""
        ...


@dataclass(frozen=True)
class Wish:
    """One completion that a caller wants rewarded until `until`, on the monotonic clock."""

    item: ScoreItem
    truncate: bool
    until: float
    promise: Promise = field(compare=False)

    @property
    def company(self) -> tuple[Any, ...]:
        """Wishes for which this is the same are completions of one item."""
        return (repr(self.item.prompt), self.item.user_id, self.item.min_version)

    def late(self) -> None:
        """Tell the caller that time is up."""
        self.fail(DeadlineExceeded("No answer in time."))

    def answer(self, score: Score) -> None:
        """Give the caller the score of their completion, unless they left."""
        # A thread may leave at any moment.
        with contextlib.suppress(InvalidStateError):
            if not self.promise.done():
                self.promise.set_result(score)

    def fail(self, error: BaseException) -> None:
        """Tell the caller what went wrong, unless they left."""
        # One error raised in several places would gather all their tracebacks.
        own = copy.copy(error)
        own.__cause__ = error.__cause__
        with contextlib.suppress(InvalidStateError):
            if not self.promise.done():
                self.promise.set_exception(own)


def wish(
    prompt: Any, completion: str, user_id: str | None, min_version: int, truncate: bool, until: float, promise: Promise
) -> Wish:
    """A wish, checked.

    Raises:
        InvalidRequest: What is wrong with it.
    """
    values = {"prompt": prompt, "completions": [completion], "user_id": user_id, "min_version": min_version}
    try:
        item = checked(ScoreItem, values)
        json_of(item)
    except InvalidRequest as error:
        error.errors = tuple(FieldError(_as_asked(field), message) for field, message in error.errors)
        raise
    return Wish(item, truncate, until, promise)


def take(wishes: list[Wish], most: int) -> Batch:
    """Take the first wishes that can travel together, `most` of them, out of `wishes`; those that were left go, too."""
    waited_for = [wish for wish in wishes if not wish.promise.done()]
    chosen = [wish for wish in waited_for if wish.truncate == waited_for[0].truncate][:most]
    taken = {id(wish) for wish in chosen}
    wishes[:] = [wish for wish in waited_for if id(wish) not in taken]
    return Batch(chosen)


class Batch:
    """Wishes that travel together."""

    def __init__(self, wishes: Sequence[Wish]) -> None:
        self.wishes = wishes
        items: dict[tuple[Any, ...], list[Wish]] = {}
        for each in wishes:
            items.setdefault(each.company, []).append(each)
        self._items = list(items.values())

    @property
    def until(self) -> float:
        """When the most patient caller gives up."""
        return max(wish.until for wish in self.wishes)

    @property
    def left(self) -> bool:
        """Whether nobody waits any more."""
        return all(wish.promise.done() for wish in self.wishes)

    def call(self) -> Call[list[Score]]:
        """The request for all of them."""
        items = [
            together[0].item.model_copy(update={"completions": [wish.item.completions[0] for wish in together]})
            for together in self._items
        ]
        return _calls.score_parts(
            [json_of(item) for item in items],
            [len(item.completions) for item in items],
            truncate=self.wishes[0].truncate,
        )

    def answered(self, scores: Sequence[Score]) -> None:
        """Give everybody their own score."""
        for together, score in zip(self._items, scores, strict=True):
            for index, each in enumerate(together):
                each.answer(_only(score, index))

    def failed(self, error: BaseException) -> None:
        """Tell everybody."""
        for each in self.wishes:
            each.fail(error)

    def cancel(self) -> None:
        """Let nobody wait any more."""
        for each in self.wishes:
            each.promise.cancel()

    def refused(self, error: RequestError) -> list[Batch]:
        """Tell those whose wishes the server names; what is left to be tried again, if anything.

        Where it names none, the half that is to blame is looked for.
        """
        if len(self.wishes) == 1:
            self.wishes[0].fail(_own(error, [path for path, _ in error.errors]))
            return []
        blamed: dict[int, tuple[Wish, list[str]]] = {}
        for path, _ in error.errors:
            for each in self._meant(path):
                blamed.setdefault(id(each), (each, []))[1].append(path)
        for each, paths in blamed.values():
            each.fail(_own(error, paths))
        rest = [wish for wish in self.wishes if id(wish) not in blamed and not wish.promise.done()]
        if blamed:
            return [Batch(rest)] if rest else []
        middle = len(rest) // 2
        return [Batch(half) for half in (rest[:middle], rest[middle:]) if half]

    def _meant(self, path: str) -> list[Wish]:
        match = _FIELD.fullmatch(path)
        if match is None or int(match[1]) >= len(self._items):
            return []
        together = self._items[int(match[1])]
        if match[2] is None:
            return together
        return together[int(match[2]) : int(match[2]) + 1]


def _only(score: Score, index: int) -> Score:
    """What a score of several completions says of one: as if it had been asked alone."""
    if len(score.rewards) == 1:
        return score
    return score.model_copy(
        update={
            "rewards": [score.rewards[index]],
            "reward_std": score.reward_std and [score.reward_std[index]],
            "order": [0],
            "best_probability": score.best_probability and [0.5],
            "best_std": score.best_std and [0.0],
            "truncated": [0] if index in score.truncated else [],
        }
    )


def _own(error: RequestError, paths: Sequence[str]) -> RequestError:
    """The error as one about a single wish: its own fields only, as the caller knows them."""
    own = copy.copy(error)
    own.errors = tuple(
        FieldError(_as_asked(_ITEM.sub("", path)), message) for path, message in error.errors if path in paths
    )
    if own.errors:
        # The server counted everybody's.
        own.detail = "The server refused this."
    return own


def _as_asked(path: str) -> str:
    """A path into an item with one completion, as who asked for a single score knows it."""
    return re.sub(r"^completions\[\d+\]", "completion", path)
