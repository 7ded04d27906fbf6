"""What a text adds to a batch that is being formed, in tokens that the device computes: pure policy."""

from __future__ import annotations

from typing import Protocol

from service.backbone.packing import PrefixTree


class Costed(Protocol):
    """A text that waits."""

    @property
    def tokens(self) -> int:
        """Its length, at least 1."""

    @property
    def key(self) -> bytes:
        """Its ids as `packing.encode` gives them; empty where the backbone shares nothing."""

    @property
    def scope(self) -> bytes:
        """Texts of different scopes share nothing."""


class BatchCost(Protocol):
    """Of one batch, from empty on."""

    def of(self, item: Costed) -> int:
        """Tokens that the item would add, at least 1."""

    def add(self, item: Costed) -> None:
        """The item is in the batch."""


class PlainCost:
    """Where the backbone computes every text from its start: the lengths."""

    def of(self, item: Costed) -> int:
        """Its length."""
        return item.tokens

    def add(self, item: Costed) -> None:
        """Nothing becomes cheaper by it."""


class SharedCost:
    """Where the backbone computes a common prefix once: what a text does not have in common with the batch.

    One that is there already costs a token: a batch of copies must end as well.
    """

    def __init__(self) -> None:
        self._tree = PrefixTree()

    def of(self, item: Costed) -> int:
        """Its tokens beyond the longest prefix that it shares."""
        return max(1, item.tokens - self._tree.shared_tokens(item.key, item.scope))

    def add(self, item: Costed) -> None:
        """What begins like it becomes cheaper."""
        self._tree.insert(item.key, item.scope)
