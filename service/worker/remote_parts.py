"""What the remote engine keeps books of: texts, requests in flight, workers. Lives on the engine's event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from service.worker.balance import WorkerLoad
from service.worker.connection import Connection
from service.worker.messages import BaseRewards
from service.worker.wire import Reason


def _nothing() -> None:
    pass


@dataclass(slots=True, eq=False)
class RemoteJob:
    """What one caller submitted together: `tokens` of it have no answer yet."""

    tokens: int


@dataclass(slots=True, eq=False)
class RemoteText:
    """One text on its way to an answer.

    Attributes:
        token_ids: The text.
        scope: Whose it is; a request holds texts of one scope.
        deadline: When its caller gives up, on the monotonic clock.
        job: What it was submitted with.
        blocks: How it begins, as `balance.prefix_blocks`; empty where that decides nothing.
        answer: Ends exactly once.
        settled: Whether it has.
        part: One text of a request was at fault: this one travels with those of its part only.
        refusals: Workers that answered but refused it, alone or by name.
        losses: Workers that were lost while they held it.
        avoid: Workers that refused it.
        flight: The request that it is in.
        on_settled: Called once it has its answer.
    """

    token_ids: Sequence[int]
    scope: bytes = b""
    deadline: float = math.inf
    job: RemoteJob | None = None
    blocks: Sequence[int] = ()
    answer: Future[BaseRewards] = field(default_factory=Future)
    settled: bool = False
    part: object | None = None
    refusals: int = 0
    losses: int = 0
    avoid: set[str] = field(default_factory=set)
    flight: Flight | None = None
    on_settled: Callable[[], None] = _nothing

    @property
    def tokens(self) -> int:
        """What it costs."""
        return len(self.token_ids)


@dataclass(slots=True, eq=False)
class RemoteWorker:
    """One worker as this process knows it.

    Attributes:
        name: Host, port and path of its URL.
        load: What the balancing goes by.
        connection: To it; None before the loop runs.
        flights: Requests that it has not answered.
        attention: Set where it should be looked at before its turn.
        suspicious: Whether it must score the golden texts again.
        tried: Whether it was asked at least once.
        up_since: When it was let in last.
        last_failure: Why it is out.
        failures: How often in a row it was asked in vain or taken out; one that served for a while begins anew.
        next_attempt: When it is asked again, on the monotonic clock.
    """

    name: str
    load: WorkerLoad
    connection: Connection | None = None
    flights: set[Flight] = field(default_factory=set)
    attention: asyncio.Event = field(default_factory=asyncio.Event)
    suspicious: bool = False
    tried: bool = False
    up_since: float = 0.0
    last_failure: Reason | None = None
    failures: int = 0
    next_attempt: float = 0.0

    async def ask(self, texts: Sequence[Sequence[int]], *, scope: bytes, timeout_s: float) -> npt.NDArray[np.float64]:
        """A h of texts; see `Connection.classify`."""
        if self.connection is None:
            raise RuntimeError(f"{self.name} is asked before it is connected. This is a bug.")
        return await self.connection.classify(texts, scope=scope, timeout_s=timeout_s)

    def is_up(self) -> bool:
        """Whether it takes texts now."""
        return self.load.up


class Flight:
    """One request to one worker, for texts of one scope. `answered` once it was; `task` is the request itself."""

    __slots__ = ("answered", "sent_at", "task", "texts", "tokens", "worker")

    def __init__(self, worker: RemoteWorker, texts: list[RemoteText], sent_at: float) -> None:
        self.worker = worker
        self.texts = texts
        self.tokens = sum(text.tokens for text in texts)
        self.sent_at = sent_at
        self.answered = False
        self.task: asyncio.Task[None] | None = None

    @property
    def deadline(self) -> float:
        """When the last of those who wait for it gives up."""
        return max(text.deadline for text in self.texts)

    def is_settled(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(text.settled for text in self.texts)

    def cancel(self) -> None:
        """Close it; the worker notices and drops what it has not begun."""
        if self.task is not None:
            self.task.cancel()
