"""What things take: bytes of a cached text and of a cached user in memory, of a user and of a pair in PostgreSQL.

There is no peer: these are the numbers that capacity planning needs. The PostgreSQL part needs an empty database, which
it migrates and fills.

Example: python -m benchmarks footprint --database-url postgresql://me@localhost/empty
"""

from __future__ import annotations

import argparse
import os
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
from sqlalchemy import text

from benchmarks.environment import describe
from service.mrm import Support, UserState, solve
from service.mrm.state import GaussianStart
from service.store import open_database
from service.store.caches import BaseRewardCache, CachedBaseRewards, UserCache
from service.store.migrate import upgrade
from service.store.records import Append, HeadsView, NewEvidence, Solution, StoredUser
from service.store.users import UserRepository

HEADS = 8
TEXTS = 50_000
USERS = 20_000
STORED_USERS = 500
PAIRS = 20


def main(argv: list[str]) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database-url", default="", help="an empty PostgreSQL database; without one: memory only")
    arguments = parser.parse_args(argv)
    print(describe())
    print(f"K = {HEADS}")
    print(f"a cached text in memory       {grown(fill_texts) / TEXTS:7.0f} bytes")
    print(f"a cached user in memory       {grown(fill_users) / USERS:7.0f} bytes")
    if arguments.database_url:
        per_user, per_pair = stored(arguments.database_url)
        print(f"a user in PostgreSQL          {per_user:7.0f} bytes, indexes included")
        print(f"a pair in PostgreSQL          {per_pair:7.0f} bytes, indexes included")


def grown(fill: Callable[[], object]) -> int:
    """Bytes that what `fill` returns holds."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = fill()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return after - before


def fill_texts() -> BaseRewardCache:
    """A cache of `TEXTS` texts."""
    cache = BaseRewardCache(TEXTS, 60.0)
    for _ in range(TEXTS):
        cache.put(os.urandom(32), CachedBaseRewards(np.random.default_rng().normal(size=HEADS), False), 0.0)
    return cache


def fill_users() -> UserCache:
    """A cache of `USERS` users."""

    cache = UserCache(USERS)
    state = someone()
    for i in range(USERS):
        now = datetime.now(UTC)
        user = StoredUser(
            tenant_id="acme",
            user_id=f"somebody-{i}",
            incarnation=i,
            version=1,
            checkpoint_id="c8125af2ad0645cf",
            heads_id="h" * 64,
            weights_K=state.weights_K.copy(),
            factor=None if state.factor is None else state.factor.copy(),
            pairs=PAIRS,
            created_at=now,
            updated_at=now,
        )
        cache.publish(user, 0.0)
    return cache


def someone() -> UserState:
    """A state with weights and a factor."""
    return solve(Support.empty(HEADS), GaussianStart(np.zeros(HEADS), np.eye(HEADS), 1.0))


def stored(url: str) -> tuple[float, float]:
    """Bytes of a user and of a pair in a database that this fills."""
    database = open_database(url)
    upgrade(database)
    users = UserRepository(database, 1000, 60.0)
    state = someone()
    generator = np.random.default_rng(0)
    for i in range(STORED_USERS):
        pairs = [
            NewEvidence(os.urandom(32).hex(), os.urandom(32), "pair", generator.normal(size=HEADS), 1.0)
            for _ in range(PAIRS)
        ]
        users.change(
            "acme",
            f"somebody-{i}",
            Append(pairs),
            HeadsView("c8125af2ad0645cf", "h" * 64, HEADS, {}),
            None,
            lambda _: Solution(state.weights_K, state.factor, {}),
        )
    with database.reading() as connection:
        sizes = [
            connection.execute(text(f"SELECT pg_total_relation_size('{table}')")).scalar_one()
            for table in ("users", "pairs")
        ]
    database.close()
    return sizes[0] / STORED_USERS, sizes[1] / (STORED_USERS * PAIRS)
