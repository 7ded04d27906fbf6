"""Which prefixes stay on the device between batches: pure policy, whatever keys and values are.

A prefix is kept from the second text on that begins with it: most completions are never seen again, so that keeping
everything would throw out what comes back. Entries end at a multiple of `BLOCK_TOKENS`, because the longest common
prefix of two completions is often a token longer than their prompt, and the third does not begin with that token.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from service.backbone.packing import TOKEN_BYTES, PrefixTree

Payload = TypeVar("Payload")

BLOCK_TOKENS: Final = 16
_REMEMBERED_TEXTS: Final = 2048
_REMEMBERED_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Entry(Generic[Payload]):
    """A prefix that is at hand.

    Attributes:
        tokens: How many.
        payload: Its keys and values.
        nbytes: What they take.
    """

    tokens: int
    payload: Payload
    nbytes: int


@dataclass(slots=True)
class PrefixCacheStats:
    """Counters since the start, and what is held now.

    Attributes:
        hits: Texts that continued a kept prefix.
        lookups: Texts that asked.
        tokens_reused: Tokens that needed no computation.
        evicted: Prefixes that made room for others.
        nbytes: Bytes held.
        entries: Prefixes held.
    """

    hits: int = 0
    lookups: int = 0
    tokens_reused: int = 0
    evicted: int = 0
    nbytes: int = 0
    entries: int = 0


class PrefixCache(Generic[Payload]):
    """Prefixes by scope and tokens, the least recently used thrown out first. One thread uses it."""

    def __init__(self, max_bytes: int) -> None:
        """Keep at most `max_bytes` of payload; 0 keeps nothing."""
        self.max_bytes = max_bytes
        self._entries: OrderedDict[tuple[bytes, bytes], Entry[Payload]] = OrderedDict()
        self._lengths: dict[bytes, Counter[int]] = {}
        self._seen = PrefixTree(BLOCK_TOKENS)
        self._order: deque[tuple[bytes, bytes]] = deque()
        self._remembered_bytes = 0
        self.stats = PrefixCacheStats()

    def find(self, key: bytes, scope: bytes) -> Entry[Payload] | None:
        """The longest kept prefix of a text (`packing.encode`d), shorter than it: its last token is always computed."""
        self.stats.lookups += 1
        tokens = len(key) // TOKEN_BYTES
        for length in sorted(self._lengths.get(scope, ()), reverse=True):
            if length < tokens and (place := (scope, key[: length * TOKEN_BYTES])) in self._entries:
                self._entries.move_to_end(place)
                self.stats.hits += 1
                self.stats.tokens_reused += length
                return self._entries[place]
        return None

    def worth_keeping(self, key: bytes, scope: bytes, known: int) -> int:
        """How many leading tokens of a text should be kept, now that it is computed; 0 for none. Remembers the text.

        Args:
            key: The text, `packing.encode`d.
            scope: Whose it is.
            known: How many tokens `find` found.
        """
        if self.max_bytes <= 0:
            return 0
        shared = self._seen.shared_tokens(key, scope) // BLOCK_TOKENS * BLOCK_TOKENS
        self._seen.insert(key, scope)
        self._order.append((key, scope))
        self._remembered_bytes += len(key)
        while len(self._order) > _REMEMBERED_TEXTS or self._remembered_bytes > _REMEMBERED_BYTES:
            oldest, whose = self._order.popleft()
            self._seen.remove(oldest, whose)
            self._remembered_bytes -= len(oldest)
        if shared <= known or (scope, key[: shared * TOKEN_BYTES]) in self._entries:
            return 0
        return shared

    def put(self, key: bytes, scope: bytes, tokens: int, payload: Payload, nbytes: int) -> None:
        """Keep the first `tokens` tokens of a text. More than the cache holds altogether is not kept."""
        if nbytes > self.max_bytes:
            return
        place = (scope, key[: tokens * TOKEN_BYTES])
        if place in self._entries:
            self._drop(place)
        self._entries[place] = Entry(tokens, payload, nbytes)
        self._lengths.setdefault(scope, Counter())[tokens] += 1
        self.stats.nbytes += nbytes
        while self.stats.nbytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
            self.stats.evicted += 1
        self.stats.entries = len(self._entries)

    def clear(self) -> None:
        """Let everything go: the device needs the memory.

        Also which texts came: those of a batch that ran out of memory come again, and each would seem worth keeping.
        """
        self._entries.clear()
        self._lengths.clear()
        self._seen = PrefixTree(BLOCK_TOKENS)
        self._order.clear()
        self._remembered_bytes = 0
        self.stats.nbytes = self.stats.entries = 0

    def _drop(self, place: tuple[bytes, bytes]) -> None:
        entry = self._entries.pop(place)
        self.stats.nbytes -= entry.nbytes
        lengths = self._lengths[place[0]]
        lengths[entry.tokens] -= 1
        if not lengths[entry.tokens]:
            del lengths[entry.tokens]
        if not lengths:
            del self._lengths[place[0]]
