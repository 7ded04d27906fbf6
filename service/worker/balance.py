"""Which remote worker gets which texts: pure policy, no threads, no clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
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
    """

    window_tokens: int
    up: bool = False
    tokens: int = 0
    requests: int = 0
    others_tokens: int = 0
    paused_until: float = 0.0
    speed: Speed = field(default_factory=Speed)
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


def least_loaded(loads: Iterable[tuple[str, WorkerLoad]]) -> str:
    """The name of the worker with the fewest tokens ahead."""
    return min(loads, key=lambda item: (item[1].tokens + item[1].others_tokens, item[1].requests))[0]


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
