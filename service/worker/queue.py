"""Which texts go to the device together, and in which order: pure policy, no threads, no clock, no I/O.

Everything is counted in tokens that the device computes, because that is what takes time and memory.

Fair by deficit round robin on two levels: scopes (tenants) take turns, and in a scope's turn its jobs (calls of
`submit`) do. A turn is worth a quarter of a batch, so a job of thousands of texts does not keep a small one waiting,
and most small ones still go in one piece, which is how a common prefix is computed once. Three rules bend the order
without taking anybody's turn away for long:

- Riders. Once a text is in the batch, texts of its scope that begin like it are cheap: they come along out of turn, up
  to half of a batch, and into whatever room is left at the end.
- Short before long. A batch takes as long as the sum of its texts, so a long one (more than a turn is worth) among
  others' texts lets this batch pass, once: it is no later than it would have been behind them, and they are earlier.
- The texts of one job stay in its order whatever happens.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Generic, TypeVar

from service.backbone.packing import MIN_SHARED_TOKENS, TOKEN_BYTES
from service.worker.batch_cost import BatchCost, Costed

TURNS_PER_BATCH: Final = 4
# Beyond these the search for riders has cost more than it can find.
_MOST_CANDIDATES: Final = 64
_MOST_MISSES: Final = 4
# Jobs of fewer tokens are counted whole in `FairQueue.ahead_of`: it is asked for every request under overload.
_LARGE_TOKENS: Final = 2048

Item = TypeVar("Item", bound=Costed)


@dataclass(frozen=True, slots=True)
class Batch(Generic[Item]):
    """What goes to the device together.

    Attributes:
        items: At least one, unless nothing waited or everything was dropped.
        computed_tokens: What the device computes for them, common prefixes once.
        tokens: Their lengths together.
        jobs: How many calls of `submit` they are from.
    """

    items: list[Item]
    computed_tokens: int
    tokens: int
    jobs: int


class _Job(Generic[Item]):
    """The texts of one submit, in order.

    `prefix`: what its first one is indexed by, empty where it is not. `postponed`: that one has had its turn, and goes
    into the next batch.
    """

    __slots__ = ("credit", "in_turn", "items", "postponed", "prefix", "scope", "tokens")

    def __init__(self, scope: bytes, items: Sequence[Item]) -> None:
        self.scope = scope
        self.items = deque(items)
        self.tokens = sum(item.tokens for item in items)
        self.credit = 0
        self.in_turn = False
        self.postponed = False
        self.prefix = b""


class _Scope(Generic[Item]):
    """Jobs that take turns, and an index of how their first texts begin."""

    __slots__ = ("by_prefix", "credit", "in_turn", "jobs", "large", "levels", "postponed", "tokens")

    def __init__(self) -> None:
        self.jobs: OrderedDict[_Job[Item], None] = OrderedDict()
        self.large: dict[_Job[Item], None] = {}
        self.tokens = 0
        self.credit = 0
        self.in_turn = False
        self.postponed = 0
        self.by_prefix: dict[bytes, dict[_Job[Item], None]] = {}
        self.levels: dict[int, int] = {}

    def index(self, job: _Job[Item]) -> None:
        """Make the job's first text known to those that begin like it; needless while the job is alone."""
        prefix = _prefix(job.items[0]) if len(self.jobs) > 1 and not job.postponed else b""
        if prefix == job.prefix:
            return
        self.forget(job)
        if prefix:
            job.prefix = prefix
            self.by_prefix.setdefault(prefix, {})[job] = None
            self.levels[len(prefix)] = self.levels.get(len(prefix), 0) + 1

    def forget(self, job: _Job[Item]) -> None:
        """Take the job out of the index."""
        if not job.prefix:
            return
        alike, level = self.by_prefix[job.prefix], len(job.prefix)
        del alike[job]
        if not alike:
            del self.by_prefix[job.prefix]
        self.levels[level] -= 1
        if not self.levels[level]:
            del self.levels[level]
        job.prefix = b""


class _Forming(Generic[Item]):
    """A batch on its way."""

    __slots__ = ("computed", "cost", "has_long", "items", "jobs", "max_tokens", "probed", "riders", "take", "tokens")

    def __init__(self, max_tokens: int, cost: BatchCost, take: Callable[[Item], bool]) -> None:
        self.max_tokens = max_tokens
        self.cost = cost
        self.take = take
        self.items: list[Item] = []
        self.jobs: set[int] = set()
        self.computed = self.tokens = self.riders = 0
        self.has_long = False
        self.probed: dict[tuple[bytes, bytes], None] = {}

    def fits(self, cost: int) -> bool:
        return not self.items or self.computed + cost <= self.max_tokens


class FairQueue(Generic[Item]):
    """Texts that wait. The caller locks."""

    def __init__(self) -> None:
        self._scopes: OrderedDict[bytes, _Scope[Item]] = OrderedDict()
        self._postponed: deque[_Job[Item]] = deque()
        self._tokens = self._items = self._jobs = 0

    def __len__(self) -> int:
        return self._items

    @property
    def tokens(self) -> int:
        """Lengths of what waits, together."""
        return self._tokens

    @property
    def jobs(self) -> int:
        """Jobs of which something waits."""
        return self._jobs

    def ahead_of(self, tokens: int, scope: bytes, max_batch_tokens: int) -> int:
        """About how many of the waiting tokens leave before a job of `tokens` that came now has left.

        Not all of them where a job or a scope waits for more: such a one is overtaken.
        """
        turn = max(1, max_batch_tokens // TURNS_PER_BATCH)
        own, share = 0, tokens + turn
        if (same := self._scopes.get(scope)) is not None:
            own = same.tokens - sum(job.tokens - share for job in same.large if job.tokens > share)
        share += own
        return own + sum(min(other.tokens, share) for other in self._scopes.values() if other is not same)

    def admit(self, items: Sequence[Item], scope: bytes = b"") -> None:
        """Take the texts of one job."""
        if not items:
            return
        self._jobs += 1
        self._items += len(items)
        job: _Job[Item] = _Job(scope, items)
        jobs = self._scopes.setdefault(scope, _Scope())
        jobs.jobs[job] = None
        if job.tokens > _LARGE_TOKENS:
            jobs.large[job] = None
        jobs.tokens += job.tokens
        self._tokens += job.tokens
        if len(jobs.jobs) == 2:  # the other one was alone
            jobs.index(next(iter(jobs.jobs)))
        jobs.index(job)

    def next_batch(
        self, max_batch_tokens: int, cost: BatchCost, take: Callable[[Item], bool] = lambda _: True
    ) -> Batch[Item]:
        """Remove and return the texts that go to the device next.

        Args:
            max_batch_tokens: The most tokens to be computed together. A text of more than that goes alone.
            cost: Of an empty batch.
            take: Asked once for each text when it would join; False drops it (its caller has left) and costs the
                batch nothing.
        """
        forming = _Forming(max_batch_tokens, cost, take)
        self._serve_postponed(forming)
        self._take_turns(forming)
        if not forming.items and self._postponed:
            self._serve_postponed(forming)
            self._take_turns(forming)
        for scope_key, prefix in list(forming.probed):
            if (scope := self._scopes.get(scope_key)) is not None:
                self._ride(scope, scope_key, prefix, forming, max_batch_tokens, on_credit=True)
        return Batch(forming.items, forming.computed, forming.tokens, len(forming.jobs))

    def discard(self, unwanted: Callable[[Item], bool]) -> int:
        """Remove the texts that are `unwanted` (their callers have left) and return how many there were."""
        removed = 0
        for job in list(self._all_jobs()):
            kept = deque(item for item in job.items if not unwanted(item))
            if len(kept) == len(job.items):
                continue
            removed += len(job.items) - len(kept)
            self._count(self._scopes[job.scope], job, sum(item.tokens for item in kept) - job.tokens)
            job.items = kept
            self._settle_head(job)
        self._items -= removed
        return removed

    def clear(self) -> list[Item]:
        """Remove and return everything."""
        items = [item for job in self._all_jobs() for item in job.items]
        self._scopes.clear()
        self._postponed.clear()
        self._tokens = self._items = self._jobs = 0
        return items

    def _count(self, scope: _Scope[Item], job: _Job[Item], tokens: int) -> None:
        job.tokens += tokens
        scope.tokens += tokens
        self._tokens += tokens

    def _all_jobs(self) -> Iterator[_Job[Item]]:
        for scope in self._scopes.values():
            yield from scope.jobs

    def _settle_head(self, job: _Job[Item]) -> None:
        """The first text of a job is another one, or it has none."""
        scope = self._scopes[job.scope]
        if job.items:
            scope.index(job)
            return
        self._release(scope, job)
        scope.forget(job)
        del scope.jobs[job]
        scope.large.pop(job, None)
        self._jobs -= 1
        if not scope.jobs:
            del self._scopes[job.scope]

    def _serve(self, job: _Job[Item], cost: int, forming: _Forming[Item]) -> bool:
        """Put a job's first text into the batch; False where it was dropped."""
        item = job.items.popleft()
        self._items -= 1
        self._count(self._scopes[job.scope], job, -item.tokens)
        if not forming.take(item):
            return False
        forming.cost.add(item)
        forming.items.append(item)
        forming.jobs.add(id(job))
        forming.computed += cost
        forming.tokens += item.tokens
        return True

    def _serve_postponed(self, forming: _Forming[Item]) -> None:
        while self._postponed:
            job = self._postponed[0]
            item = job.items[0]
            cost = forming.cost.of(item)
            if not forming.fits(cost):
                return
            scope = self._scopes[job.scope]
            self._release(scope, job)
            served = self._serve(job, cost, forming)
            self._settle_head(job)
            if served:
                forming.has_long = True
                self._call_riders(scope, item, forming)

    def _take_turns(self, forming: _Forming[Item]) -> None:
        """Scope after scope, until the batch is full or nothing waits."""
        turn = max(1, forming.max_tokens // TURNS_PER_BATCH)
        postponed = sum(job.items[0].tokens for job in self._postponed)
        while self._jobs > len(self._postponed) and postponed < forming.max_tokens:
            key, scope = next(iter(self._scopes.items()))
            if not scope.in_turn:
                scope.credit, scope.in_turn = scope.credit + turn, True
            if scope.postponed == len(scope.jobs):
                scope.in_turn = False
                self._scopes.move_to_end(key)
                continue
            job = next(iter(scope.jobs))
            if not job.in_turn:
                job.credit, job.in_turn = job.credit + turn, True
            if job.postponed:
                job.in_turn = False
                scope.jobs.move_to_end(job)
                continue
            item = job.items[0]
            cost = forming.cost.of(item)
            charge = min(cost, forming.max_tokens)
            # Credit counts only against somebody: who is alone has saved none when another comes.
            scope_alone, job_alone = len(self._scopes) == 1, len(scope.jobs) == 1
            if scope.credit < charge and not scope_alone:
                scope.in_turn = False
                self._scopes.move_to_end(key)
                continue
            if job.credit < charge and not job_alone:
                job.in_turn = False
                scope.jobs.move_to_end(job)
                continue
            fits = forming.fits(cost)
            if charge > turn and self._jobs > 1 and not (fits and forming.has_long):
                self._postpone(scope, job)
                postponed += charge
            elif fits:
                if self._serve(job, cost, forming):
                    forming.has_long = forming.has_long or charge > turn
                else:
                    charge = 0
                self._settle_head(job)
                if charge:
                    self._call_riders(scope, item, forming)
            else:
                return
            scope.credit = 0 if scope_alone else scope.credit - charge
            job.credit = 0 if job_alone else job.credit - charge

    def _postpone(self, scope: _Scope[Item], job: _Job[Item]) -> None:
        """It goes on saving for its next turns, and so does its scope."""
        scope.forget(job)
        scope.postponed += 1
        job.postponed = True
        self._postponed.append(job)

    def _release(self, scope: _Scope[Item], job: _Job[Item]) -> None:
        if job.postponed:
            self._postponed.remove(job)
            job.postponed = False
            scope.postponed -= 1

    def _call_riders(self, scope: _Scope[Item], item: Item, forming: _Forming[Item]) -> None:
        """What begins like `item`, which is in the batch, comes along."""
        for level in list(scope.levels):
            if level <= len(item.key):
                prefix = item.key[:level]
                if (item.scope, prefix) not in forming.probed:
                    self._ride(scope, item.scope, prefix, forming, forming.max_tokens // 2, on_credit=False)

    def _ride(
        self, scope: _Scope[Item], key: bytes, prefix: bytes, forming: _Forming[Item], limit: int, *, on_credit: bool
    ) -> None:
        """Take first texts that begin with `prefix`, up to `limit` tokens of riders in the batch."""
        forming.probed[key, prefix] = None
        misses, progress = 0, True
        while progress and misses < _MOST_MISSES:
            progress = False
            for job in list(islice(scope.by_prefix.get(prefix, ()), _MOST_CANDIDATES)):
                cost = forming.cost.of(job.items[0])
                on_time = on_credit or len(self._scopes) == 1 or scope.credit >= cost
                if not (on_time and forming.riders + cost <= limit and forming.computed + cost <= forming.max_tokens):
                    misses += 1
                    if misses == _MOST_MISSES:
                        return
                    continue
                progress = True
                if self._serve(job, cost, forming):
                    forming.riders += cost
                    if len(self._scopes) > 1:
                        scope.credit -= cost
                self._settle_head(job)


def _prefix(item: Costed) -> bytes:
    """How a text must begin to be worth computing with this one: a quarter to a half of it, a power of two tokens."""
    tokens = 1 << ((item.tokens // 2).bit_length() - 1) if item.tokens > 1 else 0
    return item.key[: tokens * TOKEN_BYTES] if tokens >= MIN_SHARED_TOKENS else b""
