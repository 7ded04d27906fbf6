"""Where the time of a request goes. One measurement feeds the histogram, the access log and the trace."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Final, Protocol

from prometheus_client import Histogram

# `user`: the user's state, wherever it is; `cache`: keys of the texts and the look-up of their base rewards;
# `tokenise`: rendering and tokenising; `engine`: waiting and computing; `store`: the adapt transaction without the
# `solve` inside it.
STAGES: Final = ("user", "cache", "tokenise", "engine", "solve", "store")


class Trace(Protocol):
    """The trace of one request, where it has one."""

    def stage(self, stage: Stage) -> None:
        """Take a stage that has ended, and those inside it."""
        ...

    def headers(self) -> dict[str, str]:
        """What tells a server behind this one that its work belongs to this trace."""
        ...


class RequestRecord:
    """What is known of the request under way.

    Attributes:
        stages: Seconds by stage; several of one name are summed.
        trace: Where its stages are told, or None.
    """

    __slots__ = ("stages", "trace")

    def __init__(self, trace: Trace | None = None) -> None:
        self.stages: dict[str, float] = {}
        self.trace = trace

    def add(self, stage: Stage) -> None:
        """Take a stage that has ended, and those inside it."""
        for ended in (stage, *stage.inner):
            self.stages[ended.name] = self.stages.get(ended.name, 0.0) + ended.seconds
        if self.trace is not None:
            self.trace.stage(stage)


# None where nobody asked: at start, in background work.
current: Final[ContextVar[RequestRecord | None]] = ContextVar("request_record", default=None)


class Stage:
    """One stage of a request: ``with metrics.stage("engine") as stage: ...``. It is recorded when it fails, too.

    Attributes:
        name: One of `STAGES`.
        started: `time.perf_counter` at its beginning.
        ended: The same at its end.
        seconds: How long it took, without the stages inside it. Known once it has ended.
        attributes: Counts for the trace; never texts or user ids.
        error: The type of the exception that ended it, or None.
        inner: Stages inside it.
    """

    __slots__ = ("_histogram", "attributes", "ended", "error", "inner", "name", "seconds", "started")

    def __init__(self, name: str, histogram: Histogram) -> None:
        self.name = name
        self.started = self.ended = self.seconds = 0.0
        self.attributes: Mapping[str, int] = {}
        self.error: type[BaseException] | None = None
        self.inner: tuple[Stage, ...] = ()
        self._histogram = histogram

    def __enter__(self) -> Stage:
        self.begin()
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(error)
        if (record := current.get()) is not None:
            record.add(self)

    def begin(self) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def end(self, error: type[BaseException] | None = None) -> None:
        """Stop the clock and observe, without telling the request: for a thread that works on a part of it."""
        self.ended = time.perf_counter()
        self.seconds = self.ended - self.started
        for inner in self.inner:
            self.seconds -= inner.seconds
        self.error = error
        self._histogram.observe(self.seconds)
