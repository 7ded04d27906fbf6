"""Clients that repeat every change under its Idempotency-Key until it is answered, whatever dies meanwhile."""

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

from chaos.ledger import Answered, Choice, Ledger, Scored
from chaos.oracle import COMPLETIONS, PROMPTS, completion, prompt

PATIENCE_S = 60.0
LONGEST_PAUSE_S = 0.2
CHANGE_SHARE = 0.5
# How often each kind of change is made.
KINDS = {"adapt": 0.88, "delete": 0.04, "rollback": 0.05, "reset": 0.03}
# Of all changes: left by their caller before the answer, sent to two servers at once, and repeated after the answer.
LEFT_SHARE, TWICE_SHARE, AGAIN_SHARE = 0.1, 0.05, 0.1


@dataclass(frozen=True)
class Change:
    """One request; a DELETE where it has no body."""

    kind: str
    key: str
    path: str
    body: dict[str, Any] | None
    choice: Choice | None = None
    pair_id: str = ""
    back_to: int = 0


@dataclass
class Told:
    """What became of all requests of a run.

    Attributes:
        statuses: Answers by status.
        broken: Connections that ended without an answer, by the server's URL.
        left: Requests that their caller left.
        repeated: Changes that were sent more than once.
        problems: Answers that should not be.
        slowest_change_s: The longest that any client insisted.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    left: int = 0
    repeated: int = 0
    problems: list[str] = field(default_factory=list)
    slowest_change_s: float = 0.0


class Insistence:
    """`clients` of each of some users, over `urls`, in a thread of their own."""

    def __init__(self, urls: Callable[[], Sequence[str]], *, users: int, clients: int, seed: int) -> None:
        self._urls = urls
        self._clients = clients
        self._seed = seed
        run = uuid.uuid4().hex[:8]
        self.ledgers = [Ledger(f"{run}-{i}") for i in range(users)]
        self.told = Told()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None

    @contextmanager
    def running(self) -> Iterator[Told]:
        """Clients at work while the block runs; behind it every change has been answered."""
        thread = threading.Thread(target=lambda: uvloop.run(self._drive()), daemon=True)
        thread.start()
        try:
            yield self.told
        finally:
            self._stopping.set()
            thread.join(2 * PATIENCE_S)
        if self._failure is not None:
            raise self._failure
        assert not thread.is_alive(), "a client still waits for an answer"

    async def _drive(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(timeout=PATIENCE_S, limits=limits) as http:
            clients = [
                self._client(http, ledger, random.Random(f"{self._seed} {i} {j}"))
                for i, ledger in enumerate(self.ledgers)
                for j in range(self._clients)
            ]
            outcomes = await asyncio.gather(*clients, return_exceptions=True)
        self._failure = next((outcome for outcome in outcomes if isinstance(outcome, BaseException)), None)

    async def _client(self, http: httpx.AsyncClient, ledger: Ledger, chance: random.Random) -> None:
        while not self._stopping.is_set():
            if ledger.version == 0 or chance.random() < CHANGE_SHARE:
                await self._insist(http, ledger, _any_change(ledger, chance), chance)
            else:
                await self._score(http, ledger, chance)

    async def _insist(self, http: httpx.AsyncClient, ledger: Ledger, change: Change, chance: random.Random) -> None:
        began = time.monotonic()
        way, attempts = chance.random(), 0
        answer = None
        while answer is None:
            # Once its time is over it must have been answered by servers that are all there.
            assert time.monotonic() - began < PATIENCE_S, f"{change} was not answered in {PATIENCE_S:g} s"
            attempts += 1
            if attempts == 1 and way < LEFT_SHARE:
                await self._leave(http, change, chance)
            elif attempts == 1 and way < LEFT_SHARE + TWICE_SHARE:
                both = [self._ask(http, url, change) for url in self._urls()]
                answers = [each for each in await asyncio.gather(*both) if each is not None]
                self._compare(change.key, answers)
                answer = answers[0] if answers else None
            else:
                answer = await self._ask(http, chance.choice(self._urls()), change)
        self.told.slowest_change_s = max(self.told.slowest_change_s, time.monotonic() - began)
        self.told.repeated += attempts > 1
        ledger.answered.append(
            Answered(
                change.kind,
                change.key,
                answer["version"],
                np.array(answer["weights"]),
                change.choice,
                change.pair_id,
                change.back_to,
                answer["exact"] if change.kind == "rollback" else None,
            )
        )
        if change.kind == "adapt":
            ledger.deletable.append(change.key)
        if way > 1 - AGAIN_SHARE:
            again = await self._ask(http, chance.choice(self._urls()), change)
            self._compare(change.key, [answer] if again is None else [answer, again])
            if again is not None and not again["replayed"]:
                self.told.problems.append(f"{change.key}: what was answered is done again")

    def _compare(self, key: str, answers: Sequence[dict[str, Any]]) -> None:
        """The same request has the same answer, wherever and however often it is sent."""
        for answer in answers[1:]:
            names = ["version", "pairs_total", "pairs_stored"]
            # A kept answer loses its weights when something that they were made from is deleted.
            names += ["weights"] * bool(answer["weights"] and answers[0]["weights"])
            if any(answer[name] != answers[0][name] for name in names):
                self.told.problems.append(f"{key}: two answers, {answers[0]} and {answer}")
        if sum(not answer["replayed"] for answer in answers) > 1:
            self.told.problems.append(f"{key}: done twice")

    async def _leave(self, http: httpx.AsyncClient, change: Change, chance: random.Random) -> None:
        """Send a request and go away at any moment of it: it may or may not be done."""
        asking = asyncio.ensure_future(self._ask(http, chance.choice(self._urls()), change))
        await asyncio.wait([asking], timeout=chance.uniform(0.0, 0.05))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        self.told.left += 1

    async def _score(self, http: httpx.AsyncClient, ledger: Ledger, chance: random.Random) -> None:
        i, min_version = chance.randrange(PROMPTS), ledger.version
        body = {
            "user_id": ledger.user_id,
            "prompt": prompt(i),
            "completions": [completion(i, j) for j in range(COMPLETIONS)],
            "min_version": min_version,
        }
        answer = await self._ask(http, chance.choice(self._urls()), Change("score", "", "/score", body))
        if answer is not None:
            ledger.scored.append(Scored(i, min_version, answer["version"], np.array(answer["rewards"])))

    async def _ask(self, http: httpx.AsyncClient, url: str, change: Change) -> dict[str, Any] | None:
        """The answer, or None where there was none, after a pause."""
        try:
            response = await http.request(
                "DELETE" if change.body is None else "POST",
                url + change.path,
                json=change.body,
                headers={"Idempotency-Key": change.key} if change.key else {},
            )
        except httpx.TransportError:
            self.told.broken[url] += 1
            await asyncio.sleep(0.02)
            return None
        self.told.statuses[response.status_code] += 1
        if response.status_code == 200:
            answer: dict[str, Any] = response.json()
            return answer
        if response.status_code != 503 or not response.headers.get("Retry-After", "").isdigit():
            self.told.problems.append(f"{change.path}: {response.status_code} {response.text[:300]}")
        await asyncio.sleep(min(LONGEST_PAUSE_S, float(response.headers.get("Retry-After", 1))))
        return None


def _any_change(ledger: Ledger, chance: random.Random) -> Change:
    """Mostly an adapt to one new pair of the pool; now and then something else that has become possible."""
    key, path = uuid.UUID(int=chance.getrandbits(128)).hex, f"/users/{ledger.user_id}"
    kind = chance.choices(list(KINDS), list(KINDS.values()))[0] if ledger.version else "adapt"
    if kind == "delete" and ledger.deletable:
        pair_id = ledger.deletable.pop(chance.randrange(len(ledger.deletable)))
        return Change(kind, key, f"{path}/evidence?id={pair_id}", None, pair_id=pair_id)
    if kind == "rollback":
        back_to = chance.randint(1, ledger.version)
        return Change(kind, key, f"{path}/rollback", {"version": back_to}, back_to=back_to)
    if kind == "reset":
        return Change(kind, key, f"{path}/reset", {"forget": False})
    i = chance.randrange(PROMPTS)
    chosen, rejected = chance.sample(range(COMPLETIONS), 2)
    pair = {"id": key, "prompt": prompt(i), "chosen": completion(i, chosen), "rejected": completion(i, rejected)}
    return Change("adapt", key, f"{path}/adapt", {"pairs": [pair]}, choice=(i, chosen, rejected))
