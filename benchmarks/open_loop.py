"""A load generator whose arrivals do not wait for answers, as the clients of an overloaded server do not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.load import answer_length, request_bytes

# More than this in flight, and the client would be what is measured.
MOST_CONNECTIONS = 4000


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: seconds since the start of the run, seconds it took, its status, and its head."""

    sent_at: float
    seconds: float
    status: int
    head: bytes

    @property
    def answered_at(self) -> float:
        """Seconds since the start of the run."""
        return self.sent_at + self.seconds


@dataclass
class OpenLoad:
    """What became of every request; `unanswered` counts connections that were closed on one."""

    answers: list[Answer] = field(default_factory=list)
    unanswered: int = 0
    not_sent: int = 0


class _Connection(asyncio.Protocol):
    def __init__(self, run: _Run) -> None:
        self._run = run
        self._buffer = b""
        self._sent_at = 0.0
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes) -> None:
        self._sent_at = time.perf_counter()
        self._waiting = True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        length = answer_length(self._buffer)
        if length is None or len(self._buffer) < length:
            return
        head = self._buffer.partition(b"\r\n\r\n")[0]
        seconds = time.perf_counter() - self._sent_at
        self._buffer = b""
        self._waiting = False
        sent_at = self._sent_at - self._run.started
        self._run.load.answers.append(Answer(sent_at, seconds, int(head.split(b" ", 2)[1]), head))
        self._run.one_done()
        if b"connection: close" in head.lower():
            self._transport.close()
        else:
            self._run.idle.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting:
            self._run.load.unanswered += 1
            self._run.one_done()
        elif self in self._run.idle:
            self._run.idle.remove(self)


class _Run:
    def __init__(self, url: str) -> None:
        self.load = OpenLoad()
        self.idle: list[_Connection] = []
        self.busy = 0
        self.started = time.perf_counter()
        self._sending = True
        self._answered = asyncio.Event()
        parts = urlsplit(url)
        self._place = (parts.hostname, parts.port)
        self._tasks: set[asyncio.Task[None]] = set()

    async def drive(self, requests: Iterator[bytes], per_second: float, seconds: float, patience_s: float) -> None:
        self.started = time.perf_counter()
        sent = 0
        while (now := time.perf_counter() - self.started) < seconds:
            while sent < now * per_second:
                sent += 1
                if self.busy >= MOST_CONNECTIONS:
                    self.load.not_sent += 1
                    continue
                self.busy += 1
                if self.idle:
                    self.idle.pop().send(next(requests))
                else:
                    task = asyncio.create_task(self._open(next(requests)))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0.002)
        self._sending = False
        if self.busy:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._answered.wait(), patience_s)
        self.load.unanswered += self.busy

    def one_done(self) -> None:
        """A request has its answer, or will have none."""
        self.busy -= 1
        if not self.busy and not self._sending:
            self._answered.set()

    async def _open(self, request: bytes) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(lambda: _Connection(self), *self._place)
        except OSError:
            self.one_done()
            self.load.unanswered += 1
            return
        connection.send(request)


def run_open_load(
    url: str, bodies: Iterator[bytes], *, per_second: float, seconds: float, patience_s: float = 60.0
) -> OpenLoad:
    """Send `per_second` POSTs for `seconds`, whatever becomes of them, and wait for the answers of all."""
    run = _Run(url)
    requests = (request_bytes(url, body) for body in bodies)
    uvloop.run(run.drive(requests, per_second, seconds, patience_s))
    return run.load
