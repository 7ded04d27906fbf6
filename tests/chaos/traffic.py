"""Clients that adapt and score without a pause, check every answer, and write down what became of every request."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import uvloop

from chaos.oracle import COMPLETIONS, PROMPTS, TOLERANCE, Oracle, Person, completion, prompt

LONGEST_PAUSE_S = 1.0
PATIENCE_S = 75.0


@dataclass(frozen=True, slots=True)
class Event:
    """What became of one request.

    Attributes:
        kind: `score` or `adapt`.
        at: `time.monotonic()` of its answer.
        seconds: How long it took.
        status: Of HTTP; 0 where no answer came.
        standing: `user_state` of a score, else empty.
        problem: What was wrong with the answer; empty where nothing was.
    """

    kind: str
    at: float
    seconds: float
    status: int
    standing: str = ""
    problem: str = ""


@dataclass
class Report:
    """Every request of a run."""

    events: list[Event] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Wrong answers, missing answers, and refusals that are not as documented."""
        return [f"{event.kind} {event.status}: {event.problem}" for event in self.events if event.problem]

    def statuses(self, kind: str = "", *, since: float = 0.0, until: float = float("inf")) -> Counter[int]:
        """How often each status came in a span of time."""
        return Counter(
            event.status for event in self.events if event.kind.startswith(kind) and since <= event.at < until
        )

    def standings(self, *, since: float = 0.0, until: float = float("inf")) -> Counter[str]:
        """How often a score was adapted, cold_start or stale in a span of time."""
        return Counter(event.standing for event in self.events if event.standing and since <= event.at < until)

    def slowest_s(self, *, since: float = 0.0, until: float = float("inf")) -> float:
        """The longest any request took in a span of time."""
        return max((event.seconds for event in self.events if since <= event.at < until), default=0.0)

    def __str__(self) -> str:
        return f"{len(self.events)} requests, {dict(self.statuses())}, standings {dict(self.standings())}"


class Traffic:
    """`clients` sequential clients over `urls`, each with a person of its own, in a thread of their own.

    An adapt is repeated with its Idempotency-Key until it is answered, so what a person has said is never in doubt.
    """

    def __init__(
        self,
        oracle: Oracle,
        urls: Callable[[], Sequence[str]],
        *,
        clients: int,
        adapt_share: float = 0.1,
        erase_share: float = 0.0,
        headers: dict[str, str] | None = None,
        pause_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._oracle = oracle
        self._urls = urls
        self._adapt_share = adapt_share
        self._erase_share = erase_share
        self._headers = headers or {}
        self._pause_s = pause_s
        self._random = random.Random(seed)
        run = uuid.uuid4().hex[:8]
        self.people = [Person(f"{run}-{i}") for i in range(clients)]
        self.report = Report()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._drive()), daemon=True)
        self._failure: BaseException | None = None

    @contextmanager
    def running(self) -> Iterator[Report]:
        """Traffic for as long as the block runs; at its end every request has its answer."""
        self._thread.start()
        try:
            yield self.report
        finally:
            self._stopping.set()
            self._thread.join(PATIENCE_S * 2)
            if self._thread.is_alive():
                raise AssertionError("a client still waits for an answer")
        if self._failure is not None:
            raise self._failure

    async def _drive(self) -> None:
        limits = httpx.Limits(max_connections=len(self.people) * 2, max_keepalive_connections=len(self.people) * 2)
        async with httpx.AsyncClient(timeout=PATIENCE_S, limits=limits, headers=self._headers) as http:
            outcomes = await asyncio.gather(
                *(self._client(http, person) for person in self.people), return_exceptions=True
            )
        self._failure = next((outcome for outcome in outcomes if isinstance(outcome, BaseException)), None)

    async def _client(self, http: httpx.AsyncClient, person: Person) -> None:
        while not self._stopping.is_set():
            chance = self._random.random()
            if person.version == 0 or chance < self._adapt_share:
                await self._adapt(http, person)
            elif chance > 1 - self._erase_share:
                await self._erase(http, person)
            else:
                await self._score(http, person)
            if self._pause_s:
                await asyncio.sleep(self._pause_s)

    async def _adapt(self, http: httpx.AsyncClient, person: Person) -> None:
        i = self._random.randrange(PROMPTS)
        chosen, rejected = self._random.sample(range(COMPLETIONS), 2)
        body = {"pairs": [{"prompt": prompt(i), "chosen": completion(i, chosen), "rejected": completion(i, rejected)}]}
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        while True:
            answer = await self._ask(http, "adapt", f"/users/{person.user_id}/adapt", body, headers)
            if answer is not None:
                person.pairs.append((i, chosen, rejected))
                if answer["version"] != person.version + 1:
                    self._complain("adapt", f"version {answer['version']} follows {person.version}")
                person.version = answer["version"]
                error = np.abs(np.array(answer["weights"]) - person.weights(self._oracle)).max()
                if not error <= TOLERANCE:
                    self._complain("adapt", f"weights differ by {error:.1e}")
                return
            if self._stopping.is_set():
                return

    async def _erase(self, http: httpx.AsyncClient, person: Person) -> None:
        """Forget a person; whoever comes back under the name begins at version 1."""
        answer = await self._ask(http, "erase", f"/users/{person.user_id}", None, {})
        while answer is None and not self._stopping.is_set():
            answer = await self._ask(http, "erase", f"/users/{person.user_id}", None, {})
        person.pairs, person.version = [], 0

    async def _score(self, http: httpx.AsyncClient, person: Person) -> None:
        i = self._random.randrange(PROMPTS)
        body = {
            "user_id": person.user_id,
            "prompt": prompt(i),
            "completions": [completion(i, j) for j in range(COMPLETIONS)],
            "min_version": person.version,
        }
        answer = await self._ask(http, "score", "/score", body, {})
        if answer is None:
            return
        if answer["version"] != person.version or answer["user_state"] not in ("adapted", "stale"):
            self._complain("score", f"{answer['user_state']} at version {answer['version']}, not {person.version}")
        error = np.abs(np.array(answer["rewards"]) - person.expected(self._oracle, i)).max()
        if not error <= TOLERANCE * max(1, len(person.pairs)):
            self._complain("score", f"rewards differ by {error:.1e}")

    async def _ask(
        self, http: httpx.AsyncClient, kind: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]
    ) -> dict[str, Any] | None:
        """POST a body, or DELETE without one: the answer, or None where it was refused as documented, after a pause."""
        urls = self._urls()
        if not urls:
            await asyncio.sleep(0.05)
            return None
        url = self._random.choice(urls)
        began = time.monotonic()
        try:
            response = await http.request("DELETE" if body is None else "POST", url + path, json=body, headers=headers)
        except httpx.HTTPError as error:
            now = time.monotonic()
            self.report.events.append(Event(kind, now, now - began, 0, problem=f"{type(error).__name__} from {url}"))
            await asyncio.sleep(0.1)
            return None
        now = time.monotonic()
        if response.status_code == 200:
            answer: dict[str, Any] = response.json()
            self.report.events.append(Event(kind, now, now - began, 200, answer.get("user_state", "")))
            return answer
        # An erase whose first answer was lost finds nobody.
        if kind == "erase" and response.status_code in (204, 404):
            self.report.events.append(Event(kind, now, now - began, response.status_code))
            return {}
        problem = ""
        if response.status_code != 503 or not response.headers.get("Retry-After", "").isdigit():
            problem = f"{response.status_code} {response.text[:300]}"
        self.report.events.append(Event(kind, now, now - began, response.status_code, problem=problem))
        await asyncio.sleep(min(LONGEST_PAUSE_S, float(response.headers.get("Retry-After", 1))))
        return None

    def _complain(self, kind: str, problem: str) -> None:
        self.report.events.append(Event(f"check of {kind}", time.monotonic(), 0.0, 200, problem=problem))
