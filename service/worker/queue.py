"""Which texts go to the device together, and which are refused: pure policy, no threads, no clock, no I/O.

Everything is counted in tokens, because that is what the device takes time and memory for. First come, first served
across requests: a batch is the longest run of waiting items that fits, so no item can be overtaken for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from service.errors import Overloaded


class Costed(Protocol):
    """Something that waits."""

    @property
    def tokens(self) -> int:
        """Its cost, at least 1."""


Item = TypeVar("Item", bound=Costed)


class TokenQueue(Generic[Item]):
    """Items in the order of arrival, bounded in tokens. The caller locks."""

    def __init__(self, max_queue_tokens: int) -> None:
        self._max_queue_tokens = max_queue_tokens
        self._items: deque[Item] = deque()
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return self._tokens

    def admit(self, items: Sequence[Item], retry_after_s: float = 1.0) -> None:
        """Take all of `items` or none.

        An empty queue takes a request of any size: a bound that it could never meet would refuse it for ever with an
        error that says to try again.

        Raises:
            Overloaded: Together with what waits they exceed `max_queue_tokens`; says to retry after `retry_after_s`.
        """
        tokens = sum(item.tokens for item in items)
        if self._items and self._tokens + tokens > self._max_queue_tokens:
            raise Overloaded("the engine has as much work as it may take on; try again later", retry_after_s)
        self._items.extend(items)
        self._tokens += tokens

    def next_batch(self, max_batch_tokens: int, take: Callable[[Item], bool] = lambda _: True) -> list[Item]:
        """Remove and return the items that go to the device next.

        Args:
            max_batch_tokens: The most tokens together. An item of more than that goes alone.
            take: Asked once for each item when its turn has come; False drops it (its caller has left) and costs
                the batch nothing.

        Returns:
            The batch; empty only if nothing waits or everything was dropped.
        """
        batch: list[Item] = []
        tokens = 0
        while self._items and (not batch or tokens + self._items[0].tokens <= max_batch_tokens):
            item = self._items.popleft()
            self._tokens -= item.tokens
            if take(item):
                batch.append(item)
                tokens += item.tokens
        return batch

    def discard(self, unwanted: Callable[[Item], bool]) -> int:
        """Remove the items that are `unwanted` (their callers have left) and return how many there were."""
        kept = deque(item for item in self._items if not unwanted(item))
        removed = len(self._items) - len(kept)
        self._items = kept
        self._tokens = sum(item.tokens for item in kept)
        return removed

    def clear(self) -> list[Item]:
        """Remove and return everything."""
        items = list(self._items)
        self._items.clear()
        self._tokens = 0
        return items
