"""Which remote worker gets which texts: pure policy, no threads, no clock, no I/O."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from service.worker.admission import TELLING_S, Speed

# A worker holds one batch on its device, the next one queued, and one is on its way: it never waits for the network,
# and what has not been sent yet can still go to whoever is first free.
_BATCHES_IN_FLIGHT: Final = 3
_MAX_REQUESTS_IN_FLIGHT: Final = 32
_SHORTEST_SPELL_S: Final = 0.05
# Below this, sharing a request among workers costs more in round trips than it saves.
_SMALLEST_SHARE_TOKENS: Final = 1024
_MAX_TEXTS: Final = 512
# Prefixes are compared block by block: of so many tokens, and no further than so many blocks.
_BLOCK_TOKENS: Final = 32
_MAX_BLOCKS: Final = 128
# A worker forgets prefixes too; 16,384 blocks are half a million tokens.
_REMEMBERED_BLOCKS: Final = 16_384
# A token that a worker has computed already outweighs so many in its queue: it costs the others of its batch nothing.
_WORTH_OF_A_KNOWN_TOKEN: Final = 4


def prefix_blocks(token_ids: Sequence[int], scope: bytes) -> tuple[int, ...]:
    """A hash for each block of a text and all that is before it: equal where texts of one scope begin alike."""
    data = array("i", token_ids[: _MAX_BLOCKS * _BLOCK_TOKENS])
    size = data.itemsize * _BLOCK_TOKENS
    ids = data.tobytes()
    blocks = []
    before = hash(scope)
    for end in range(size, len(ids) + 1, size):
        before = hash((before, ids[end - size : end]))
        blocks.append(before)
    return tuple(blocks)


def belong_together(blocks: Sequence[int], other_blocks: Sequence[int]) -> bool:
    """Whether two texts share a quarter of the shorter one: completions of one prompt do."""
    quarter = -(-min(len(blocks), len(other_blocks)) // 4)
    return quarter > 0 and blocks[quarter - 1] == other_blocks[quarter - 1]


class RecentPrefixes:
    """What a worker was sent lately, as `prefix_blocks`; bounded, the oldest go first."""

    __slots__ = ("_blocks", "_max_blocks")

    def __init__(self, max_blocks: int = _REMEMBERED_BLOCKS) -> None:
        self._blocks: dict[int, None] = {}
        self._max_blocks = max_blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def note(self, blocks: Sequence[int]) -> None:
        """A text with these blocks was sent."""
        # Deepest first: a prefix is of use without its end, never the other way round.
        for block in reversed(blocks):
            self._blocks.pop(block, None)
            self._blocks[block] = None
        while len(self._blocks) > self._max_blocks:
            del self._blocks[next(iter(self._blocks))]

    def known_tokens(self, blocks: Sequence[int]) -> int:
        """Leading tokens that the worker has seen."""
        known = 0
        for block in blocks:
            if block not in self._blocks:
                break
            known += 1
        return known * _BLOCK_TOKENS

    def forget(self) -> None:
        """It may have been started anew."""
        self._blocks.clear()


@dataclass(slots=True)
class WorkerLoad:
    """What is known of one worker's work.

    Attributes:
        window_tokens: What it may hold of ours before more has to wait here.
        up: Whether it takes texts.
        tokens: Sent by us and not yet answered.
        requests: Those are in so many requests.
        others_tokens: Tokens of other REST layers in its queue, when it last told.
        paused_until: It was overloaded, and takes nothing before this time.
        speed: What it does for us.
        recent: How texts began that it was sent lately.
    """

    window_tokens: int
    up: bool = False
    tokens: int = 0
    requests: int = 0
    others_tokens: int = 0
    paused_until: float = 0.0
    speed: Speed = field(default_factory=Speed)
    recent: RecentPrefixes = field(default_factory=RecentPrefixes)
    _busy_since: float = 0.0
    _answered_tokens: int = 0

    def has_room(self) -> bool:
        """Whether it may be sent more; one that holds nothing takes a text of any length."""
        return self.tokens < self.window_tokens and self.requests < _MAX_REQUESTS_IN_FLIGHT

    def sent(self, tokens: int, now: float) -> None:
        """A request of so many tokens is on its way."""
        if self.requests == 0:
            self._busy_since = now
            self._answered_tokens = 0
        self.tokens += tokens
        self.requests += 1

    def returned(self, tokens: int, now: float, *, answered: bool) -> None:
        """A request has ended, with answers or without."""
        self.tokens -= tokens
        self.requests -= 1
        if not answered:
            return
        self._answered_tokens += tokens
        seconds = max(1e-6, now - self._busy_since)
        # Answers of one batch come together: the time between two of them says nothing.
        if seconds >= _SHORTEST_SPELL_S or self.requests == 0:
            full = self._answered_tokens * 2 * _BATCHES_IN_FLIGHT >= self.window_tokens
            # A least speed alone is no reason to refuse: the worker itself knows better.
            if full or seconds >= TELLING_S or self.speed.tokens_per_s is not None:
                self.speed.note(self._answered_tokens, seconds, full=full)
            self._busy_since = now
            self._answered_tokens = 0

    def told(self, queued_tokens: int | None) -> None:
        """What the worker said of its queue."""
        self.others_tokens = 0 if queued_tokens is None else max(0, queued_tokens - self.tokens)


def window_tokens(max_batch_tokens: int) -> int:
    """`WorkerLoad.window_tokens` for workers that compute so many tokens at a time."""
    return _BATCHES_IN_FLIGHT * max_batch_tokens


def least_loaded(loads: Iterable[tuple[str, WorkerLoad]], blocks: Sequence[int] = ()) -> str:
    """The name of the worker with the fewest tokens ahead, or of one that knows how the text begins.

    It may have more ahead, in proportion to what it knows: beyond that another one computes the prefix again, and
    from then on knows it too.
    """

    def burden(load: WorkerLoad) -> int:
        return load.tokens + load.others_tokens - _WORTH_OF_A_KNOWN_TOKEN * load.recent.known_tokens(blocks)

    return min(loads, key=lambda item: (burden(item[1]), item[1].requests))[0]


def share_tokens(pending_tokens: int, free_workers: int, max_batch_tokens: int) -> int:
    """How many tokens the next request may have: what waits is shared among those who could begin at once."""
    share = -(-pending_tokens // max(1, free_workers))
    return min(max_batch_tokens, max(_SMALLEST_SHARE_TOKENS, share))


def fits(tokens: int, texts: int, next_tokens: int, limit: int) -> bool:
    """Whether one more text fits into a request; the first one always does."""
    return not texts or (tokens + next_tokens <= limit and texts < _MAX_TEXTS)


def backoff_s(failures: int) -> float:
    """How long to leave a worker alone after so many failed attempts in a row: at once, then ever longer."""
    return min(2.0, 0.1 * 2.0 ** min(failures, 10))
