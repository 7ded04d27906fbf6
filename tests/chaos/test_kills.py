"""Two API processes over one PostgreSQL and one Redis, of which any may end by SIGKILL at any moment: what was answered
is there, once, and nobody is torn. And replicas are replaced one after the other, as an orchestrator does: no request
fails."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
import uvloop
from redis_server import RedisServer
from servers import PostgresServer

from benchmarks.server import ServerProcess
from chaos.balancer import Balancer
from chaos.conftest import FULL
from chaos.insistence import Insistence
from chaos.ledger import Answered, Ledger, verify
from chaos.oracle import COMPLETIONS, PROMPTS, Oracle, completion, prompt
from chaos.traffic import Traffic
from service.store import open_database
from service.store.migrate import upgrade

SECRET = "a secret that every replica has, of length 40"
ROUNDS, USERS, CLIENTS = (30, 8, 4) if FULL else (3, 4, 3)
# Longest load before a kill and longest time that a victim is away.
LOAD_S, AWAY_S = (4.0, 2.0) if FULL else (1.0, 0.5)
SEED = 20
CONCURRENT = 200


@dataclass
class Deployment:
    """What may be killed."""

    servers: list[ServerProcess]
    postgres: PostgresServer
    redis: RedisServer

    def urls(self) -> list[str]:
        """Of both servers, dead or alive."""
        return [server.url for server in self.servers]

    def kill(self, victim: str) -> None:
        """SIGKILL."""
        self._part(victim).kill()

    def start(self, victim: str) -> None:
        """Start it again where it was."""
        self._part(victim).start()

    def _part(self, victim: str) -> ServerProcess | PostgresServer | RedisServer:
        return {"api 0": self.servers[0], "api 1": self.servers[1], "postgresql": self.postgres, "redis": self.redis}[
            victim
        ]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    postgres, redis = PostgresServer(durable=True), RedisServer(password="open-sesame")
    with ExitStack() as stack:
        stack.callback(postgres.close)
        stack.callback(redis.close)
        postgres.start()
        redis.start()
        database = open_database(postgres.url())
        upgrade(database)
        database.close()
        settings = {
            "DATABASE_URL": postgres.url(),
            "REDIS_URL": redis.url,
            "SECRET_KEY": SECRET,
            "HISTORY_VERSIONS": "1000",
            "DRAIN_DELAY_S": "2",
        }
        servers = [ServerProcess(tmp_path_factory.mktemp(f"api{i}"), **settings) for i in range(2)]
        for server in servers:
            stack.push(server)
        with ThreadPoolExecutor() as starters:
            list(starters.map(ServerProcess.start, servers))
        yield Deployment(servers, postgres, redis)


@dataclass
class Round:
    """What one kill did, and what was found after it."""

    victim: str
    after_s: float
    away_s: float
    changes: int
    repeated: int
    scores: int
    refused: int
    broken: int
    slowest_change_s: float
    lost: int
    doubled: int
    torn: int
    misread: int


@pytest.mark.timeout(1800)
def test_what_was_answered_survives_kill_9_of_anything(deployment: Deployment, oracle: Oracle) -> None:
    chance = random.Random(SEED)
    rounds: list[Round] = []
    everybody: list[Ledger] = []
    problems: list[str] = []
    # Every kind of victim comes up in every three rounds, in any order.
    kinds = [kind for _ in range(ROUNDS // 3) for kind in chance.sample(["api", "postgresql", "redis"], 3)]
    for n, kind in enumerate(kinds, 1):
        victim = f"api {chance.randrange(2)}" if kind == "api" else kind
        clients = Insistence(deployment.urls, users=USERS, clients=CLIENTS, seed=SEED + n)
        after_s, away_s = chance.uniform(0.1, LOAD_S), chance.uniform(0.0, AWAY_S)
        url = dict(zip(["api 0", "api 1"], deployment.urls(), strict=True)).get(victim)
        with clients.running() as told:
            time.sleep(after_s)
            deployment.kill(victim)
            time.sleep(away_s)
            deployment.start(victim)
            time.sleep(0.3)
        everybody += clients.ledgers
        found = verify(clients.ledgers, deployment.postgres.url(), oracle)
        rounds.append(
            Round(
                victim,
                after_s,
                away_s,
                sum(len(ledger.answered) for ledger in clients.ledgers),
                told.repeated,
                sum(len(ledger.scored) for ledger in clients.ledgers),
                told.statuses[503],
                told.broken.total(),
                told.slowest_change_s,
                len(found.lost),
                len(found.doubled),
                len(found.torn),
                len(found.misread),
            )
        )
        problems += [f"round {n}, {victim}: {problem}" for problem in found.problems + told.problems]
        problems += [f"round {n}, {victim}: no answer from {other}" for other in told.broken if other != url]
        if victim == "redis" and set(told.statuses) != {200}:
            problems.append(f"round {n}: without redis {dict(told.statuses)}")
        assert all(ledger.version for ledger in clients.ledgers)
    # What later rounds did not touch is as it was.
    problems += verify(everybody, deployment.postgres.url(), oracle).problems
    print(f"\n{_table(rounds)}")
    assert problems == []
    assert sum(each.repeated for each in rounds) > 0
    assert sum(each.broken for each in rounds) > 0
    assert sum(each.refused for each in rounds) > 0


def _table(rounds: list[Round]) -> str:
    counted = ("changes", "repeated", "scores", "refused", "broken", "lost", "doubled", "torn", "misread")
    lines = [
        "round  victim      after s  away s  changes  repeated  scores    503  broken  slowest s  "
        "lost  doubled  torn  misread"
    ]
    total = Round("all", 0.0, 0.0, 0, 0, 0, 0, 0, max(each.slowest_change_s for each in rounds), 0, 0, 0, 0)
    for name in counted:
        setattr(total, name, sum(getattr(each, name) for each in rounds))
    for i, each in enumerate([*rounds, total], 1):
        lines.append(
            f"{i if each is not total else '':>5}  {each.victim:<10}  {each.after_s:7.2f}  {each.away_s:6.2f}  "
            f"{each.changes:7}  {each.repeated:8}  {each.scores:6}  {each.refused:5}  {each.broken:6}  "
            f"{each.slowest_change_s:9.2f}  {each.lost:4}  {each.doubled:7}  {each.torn:4}  {each.misread:7}"
        )
    return "\n".join(lines)


def test_two_hundred_adapts_of_one_user_at_once(deployment: Deployment, oracle: Oracle) -> None:
    choices = [(i, a, b) for i in range(PROMPTS) for a in range(COMPLETIONS) for b in range(COMPLETIONS) if a != b]
    random.Random(SEED).shuffle(choices)
    one, other = Ledger("one-of-two-hundred"), "all-two-hundred-in-one"
    pairs = [
        {"id": f"pair-{n}", "prompt": prompt(i), "chosen": completion(i, a), "rejected": completion(i, b)}
        for n, (i, a, b) in enumerate(choices[:CONCURRENT])
    ]

    async def adapt(http: httpx.AsyncClient, n: int) -> int:
        attempts = 0
        while True:
            attempts += 1
            answer = await http.post(
                f"{deployment.urls()[n % 2]}/users/{one.user_id}/adapt",
                json={"pairs": [pairs[n]]},
                headers={"Idempotency-Key": f"pair-{n}"},
            )
            if answer.status_code == 200:
                break
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(float(answer.headers["Retry-After"]))
        body = answer.json()
        one.answered.append(
            Answered("adapt", f"pair-{n}", body["version"], np.array(body["weights"]), choice=choices[n])
        )
        return attempts

    async def all_at_once() -> list[int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=60, limits=limits) as http:
            return await asyncio.gather(*(adapt(http, n) for n in range(CONCURRENT)))

    began = time.monotonic()
    attempts = uvloop.run(all_at_once())
    took_s = time.monotonic() - began
    found = verify([one], deployment.postgres.url(), oracle)
    assert found.problems == []
    assert sorted(adapt.version for adapt in one.answered) == list(range(1, CONCURRENT + 1))

    # The same pairs by somebody who says them all in one request.
    at_once = httpx.post(f"{deployment.urls()[0]}/users/{other}/adapt", json={"pairs": pairs}, timeout=60).json()
    last = max(one.answered, key=lambda adapt: adapt.version)
    difference = np.abs(last.weights_K - np.array(at_once["weights"])).max()
    print(
        f"\n{CONCURRENT} adapts at once in {took_s:.1f} s, {sum(attempts)} requests; weights differ by {difference:.1e}"
    )
    assert difference < 1e-6


def test_no_request_fails_while_replicas_are_replaced(deployment: Deployment, oracle: Oracle) -> None:
    with Balancer(deployment.servers) as balancer:
        traffic = Traffic(oracle, balancer.urls, clients=32 if FULL else 8, pause_s=0.02)
        with traffic.running() as report:
            time.sleep(1)
            for _ in range(5 if FULL else 1):
                for replica in deployment.servers:
                    replica.stop()
                    replica.start()
                    while replica.url not in balancer.urls():
                        time.sleep(0.1)
    print(f"\nrolling restart: {report}, slowest {report.slowest_s():.2f} s")
    assert report.problems() == []
    assert set(report.statuses()) == {200}
    assert report.statuses("adapt")[200] > 8


COPY_PAIRS = (
    "INSERT INTO pairs (incarnation, pair_id, heads_id, tenant_id, content_key, diff, strength, event_time) "
    "SELECT incarnation, 'x' || pair_id, heads_id, tenant_id, content_key, diff, strength, event_time FROM pairs"
)
DAMAGES = {
    "DELETE FROM pairs WHERE incarnation = (SELECT max(incarnation) FROM pairs)": "lost",
    "DELETE FROM users": "lost",
    "UPDATE users SET version = version + 1": "torn",
    "UPDATE users SET weights = set_byte(weights, 5, get_byte(weights, 5) # 1)": "torn",
    "UPDATE pairs SET diff = set_byte(diff, 7, get_byte(diff, 7) # 128)": "torn",
    COPY_PAIRS: "doubled",
    "DELETE FROM idempotency": "doubled",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_oracle_sees_what_is_wrong(deployment: Deployment, oracle: Oracle, damage: str) -> None:
    clients = Insistence(deployment.urls, users=1, clients=2, seed=SEED)
    with clients.running():
        while clients.ledgers[0].version < 3:
            time.sleep(0.01)
    url = deployment.postgres.url()
    assert verify(clients.ledgers, url, oracle).problems == []
    deployment.postgres.execute(damage)
    assert getattr(verify(clients.ledgers, url, oracle), DAMAGES[damage])
