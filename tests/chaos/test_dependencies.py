"""Redis and PostgreSQL down, slow, flushed, read-only, restarted under load: the failure table, line by line.

Every answer is checked against the oracle. Nothing of the server is restarted: it must recover by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest
from redis_server import RedisServer
from servers import PostgresServer

from benchmarks.server import ServerProcess
from chaos.conftest import FULL
from chaos.oracle import COMPLETIONS, Oracle, completion, prompt
from chaos.proxy import SlowProxy
from chaos.traffic import Traffic
from service.store import open_database
from service.store.migrate import upgrade

SECRET = "a secret that every replica has, of length 40"
SLOW_S = 2.0
RECOVERY_S = 20.0


@dataclass
class Deployment:
    """One server with PostgreSQL and Redis behind networks that can be made slow."""

    server: ServerProcess
    postgres: PostgresServer
    redis: RedisServer
    postgres_network: SlowProxy
    redis_network: SlowProxy

    def metric(self, name: str) -> float:
        """A sample from /metrics, by its whole name with labels; 0 where there is none."""
        for line in httpx.get(self.server.metrics_url).text.splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def degraded(self) -> str:
        """What /ready says; it must be ready whatever a shared dependency does."""
        answer = httpx.get(f"{self.server.url}/ready", timeout=10)
        assert answer.status_code == 200, answer.text
        return " ".join(answer.json()["degraded"])


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    postgres, redis = PostgresServer(), RedisServer(password="open-sesame")
    try:
        postgres.start()
        redis.start()
        database = open_database(postgres.url())
        upgrade(database)
        database.close()
        with SlowProxy(postgres.port).running() as to_postgres, SlowProxy(redis.port).running() as to_redis:
            settings = {
                "DATABASE_URL": f"postgresql://postgres@127.0.0.1:{to_postgres.port}/postgres",
                "REDIS_URL": f"redis://:open-sesame@127.0.0.1:{to_redis.port}/0",
                "SECRET_KEY": SECRET,
                # Every text goes to Redis and then to the engine.
                "BASE_REWARD_CACHE_ENTRIES": "1",
            }
            with ServerProcess(tmp_path_factory.mktemp("chaos"), **settings) as server:
                yield Deployment(server, postgres, redis, to_postgres, to_redis)
    finally:
        redis.close()
        postgres.close()


@dataclass(frozen=True)
class Fault:
    """Something that is done to a dependency, and undone."""

    begin: Callable[[Deployment], None]
    end: Callable[[Deployment], None]


def slow(network: str, delay_s: float) -> Callable[[Deployment], None]:
    def change(deployment: Deployment) -> None:
        getattr(deployment, network).delay_s = delay_s

    return change


def read_only(setting: str) -> Callable[[Deployment], None]:
    def change(deployment: Deployment) -> None:
        deployment.postgres.execute(f"ALTER SYSTEM SET default_transaction_read_only = {setting}")
        deployment.postgres.execute("SELECT pg_reload_conf()")

    return change


REDIS_FAULTS = {
    "killed": Fault(lambda d: d.redis.kill(), lambda d: d.redis.start() and None),
    "frozen": Fault(lambda d: d.redis.pause(), lambda d: d.redis.resume()),
    "slow": Fault(slow("redis_network", SLOW_S), slow("redis_network", 0.0)),
    "flushed": Fault(lambda d: d.redis.flush(), lambda d: d.redis.flush()),
    "read-only": Fault(lambda d: d.redis.set_read_only(True), lambda d: d.redis.set_read_only(False)),
    "full": Fault(lambda d: d.redis.set_full(True), lambda d: d.redis.set_full(False)),
    "restarted": Fault(lambda d: d.redis.restart(), lambda d: None),
}
POSTGRES_FAULTS = {
    "killed": Fault(lambda d: d.postgres.kill(), lambda d: d.postgres.start()),
    "frozen": Fault(lambda d: d.postgres.pause(), lambda d: d.postgres.resume()),
    "slow": Fault(slow("postgres_network", SLOW_S), slow("postgres_network", 0.0)),
    "read-only": Fault(read_only("on"), read_only("off")),
    "restarted": Fault(lambda d: d.postgres.restart(), lambda d: None),
}
SHORT_REDIS = ("killed", "slow", "read-only")
SHORT_POSTGRES = ("killed", "slow")


@pytest.mark.parametrize("name", REDIS_FAULTS if FULL else SHORT_REDIS)
def test_nothing_that_happens_to_redis_fails_a_request(deployment: Deployment, oracle: Oracle, name: str) -> None:
    fault = REDIS_FAULTS[name]
    traffic = Traffic(oracle, lambda: [deployment.server.url], clients=32 if FULL else 6, pause_s=0.01)
    with traffic.running() as report:
        time.sleep(1)
        began = time.monotonic()
        fault.begin(deployment)
        time.sleep(20 if FULL else 1.5)
        fault.end(deployment)
        ended = time.monotonic()
        hits = deployment.metric(REDIS_HITS)
        _until(lambda: deployment.metric(REDIS_UP) == 1 and deployment.metric(REDIS_HITS) > hits)
    slowest_s = report.slowest_s(since=began, until=ended)
    print(f"\nredis {name}: {report}; during the fault the slowest took {slowest_s:.2f} s")
    assert report.problems() == []
    assert set(report.statuses()) == {200}
    assert report.standings()["stale"] == 0


REDIS_UP = 'metareward_dependency_up{dependency="redis"}'
REDIS_HITS = 'metareward_base_reward_cache_total{level="redis",result="hit"}'


@pytest.mark.parametrize("name", POSTGRES_FAULTS if FULL else SHORT_POSTGRES)
def test_without_postgresql_known_users_are_scored_and_nobody_is_taken_for_new(
    deployment: Deployment, oracle: Oracle, name: str
) -> None:
    fault = POSTGRES_FAULTS[name]
    traffic = Traffic(oracle, lambda: [deployment.server.url], clients=32 if FULL else 6, pause_s=0.01)
    with traffic.running() as report:
        while not all(person.version for person in traffic.people):
            time.sleep(0.05)
        began = time.monotonic()
        fault.begin(deployment)
        time.sleep(20 if FULL else 3)
        unknown = None
        if name in ("killed", "frozen"):
            unknown = _score_somebody_unknown(deployment)
            assert "database" in deployment.degraded()
        fault.end(deployment)
        ended = time.monotonic()
        _until(lambda: report.statuses("adapt", since=ended)[200] >= 3 and not deployment.degraded())
    during = report.statuses("score", since=began, until=ended), report.statuses("adapt", since=began, until=ended)
    print(f"\npostgresql {name}: {report}; during the fault scores {dict(during[0])}, adapts {dict(during[1])}")
    assert report.problems() == []
    assert set(report.statuses()) <= {200, 503}
    # Everybody in this traffic is known: the database is not needed to score them.
    assert set(report.statuses("score", since=began, until=ended)) <= {200}
    assert report.standings()["cold_start"] == 0
    if unknown is not None:
        assert unknown.status_code == 503, unknown.text
        assert unknown.headers["Retry-After"].isdigit()
        assert report.statuses("adapt", since=began + 1, until=ended)[503] > 0


def _score_somebody_unknown(deployment: Deployment) -> httpx.Response:
    body = {
        "user_id": "somebody-whom-no-cache-knows",
        "prompt": prompt(0),
        "completions": [completion(0, j) for j in range(COMPLETIONS)],
    }
    return httpx.post(f"{deployment.server.url}/score", json=body, timeout=60)


def _until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + RECOVERY_S
    while not condition():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not recovered after {RECOVERY_S:g} s")
        time.sleep(0.2)
