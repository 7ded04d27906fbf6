"""Users: pages, erasing, many writers at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text
from storing import CHECKPOINT, HEADS, adapt, new_pair, repository, seen_from

from service.store import Database, Idempotency, Solution, StoredEvidence
from service.store.tables import Base

THREADS = 20


@pytest.fixture
def database_url(emptied_url: str) -> str:
    """One database for all tests of this module."""
    return emptied_url


def test_pages_follow_byte_order_and_stay_within_the_tenant(database: Database) -> None:
    users = repository(database)
    names = ["b", "a", "B", "ä", "user/slash", "emoji-🙂", "a b"]
    for name in names:
        adapt(users, [new_pair("p")], user=name)
    adapt(users, [new_pair("p")], tenant="other", user="aa")

    seen: list[str] = []
    after: str | None = None
    while page := users.list("tenant", after, 3):
        assert len(page) <= 3
        seen += [user.user_id for user in page]
        after = seen[-1]
    assert seen == sorted(names, key=lambda name: name.encode())
    assert page == []
    first = users.list("tenant", None, 1)[0]
    np.testing.assert_array_equal(first.weights_K, new_pair("p").base_rewards)


def test_unknown_users_are_none_and_have_no_pairs(database: Database) -> None:
    users = repository(database)
    adapt(users, [new_pair("a")])
    assert users.get("tenant", "grace") is None
    assert users.get("other", "ada") is None
    assert users.support("tenant", "grace", seen_from()) == []
    assert users.erase("tenant", "grace") is None


def test_erasing_leaves_no_row_and_the_next_life_has_a_higher_incarnation(database: Database) -> None:
    users = repository(database)
    _, kept = adapt(users, [new_pair("a")], user="grace")
    _, first = adapt(users, [new_pair("a")], key=Idempotency("key", b"1"))
    assert users.erase("tenant", "ada") == first.incarnation
    assert users.get("tenant", "ada") is None
    with database.engine.connect() as connection:
        for table in (t for t in Base.metadata.sorted_tables if "incarnation" in t.c):
            lives = connection.execute(text(f"SELECT incarnation FROM {table.name}")).scalars().all()
            assert set(lives) <= {kept.incarnation}

    again, second = adapt(users, [new_pair("b")], key=Idempotency("key", b"2"))
    assert (again.version, again.pairs_total, again.replayed) == (1, 1, False)
    assert second.incarnation > first.incarnation


def test_an_erased_name_is_nowhere_in_the_sqlite_files(sqlite_url: str, tmp_path: Path) -> None:
    from service.store import open_database

    database = open_database(sqlite_url)
    users = repository(database)
    adapt(users, [new_pair("pair-of-zaphod")], user="zaphod")
    adapt(users, [new_pair("a")], user="ada")
    users.erase("tenant", "zaphod")
    database.close()  # the last connection folds the write-ahead log into the file
    files = {path.name: path.read_bytes() for path in tmp_path.glob("metareward.db*")}
    assert any(b"ada" in data for data in files.values())
    assert not any(b"zaphod" in data for data in files.values())


def test_an_incarnation_is_never_used_again_though_it_was_the_last(database: Database) -> None:
    users = repository(database)
    lives = []
    for _ in range(3):
        _, user = adapt(users, [])
        lives.append(user.incarnation)
        users.erase("tenant", "ada")
    assert lives == sorted(set(lives))


def test_concurrent_adapts_of_one_user_lose_nothing(database: Database) -> None:
    users = repository(database)
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(lambda i: adapt(users, [new_pair(f"{i}")])[0], range(THREADS)))
    assert sorted(answer.version for answer in answers) == list(range(1, THREADS + 1))
    assert sorted(answer.pairs_total for answer in answers) == list(range(1, THREADS + 1))
    assert len({answer.incarnation for answer in answers}) == 1
    stored = {pair.evidence_id for pair in users.support("tenant", "ada", seen_from())}
    assert stored == {f"{i}" for i in range(THREADS)}
    user = users.get("tenant", "ada")
    assert user is not None
    assert user.version == THREADS
    np.testing.assert_allclose(user.weights_K, sum(new_pair(name).base_rewards for name in stored), rtol=1e-9)


def test_concurrent_requests_with_one_key_are_done_once(database: Database) -> None:
    users = repository(database)
    solved: list[int] = []

    def solve(support: Sequence[StoredEvidence]) -> Solution:
        solved.append(len(support))
        return Solution(np.zeros(3), None, {})

    def send(_: int) -> bool:
        return adapt(users, [new_pair("a")], key=Idempotency("key", b"1"), solve=solve)[0].replayed

    with ThreadPoolExecutor(8) as pool:
        replayed = list(pool.map(send, range(8)))
    assert sorted(replayed) == [False] + [True] * 7
    assert solved == [1]


def test_adapts_among_erases_end_in_whole_lives(database: Database) -> None:
    users = repository(database)

    def step(i: int) -> int | None:
        if i % 4 == 3:
            users.erase("tenant", "ada")
            return None
        return adapt(users, [new_pair(f"{i}")])[1].incarnation

    with ThreadPoolExecutor(8) as pool:
        lives = [life for life in pool.map(step, range(40)) if life is not None]
    outcome, user = adapt(users, [])
    assert user.incarnation >= max(lives)
    assert outcome.pairs_total == len(users.support("tenant", "ada", seen_from())) == outcome.version - 1


WRITER = f"""
import sys
sys.path[:0] = sys.argv[1].split("|")
from storing import adapt, new_pair, repository
from service.store import open_database
users = repository(open_database(sys.argv[2]))
for i in range(10):
    adapt(users, [new_pair(f"{{sys.argv[3]}}-{{i}}")], heads={HEADS!r}, checkpoint={CHECKPOINT!r})
"""


def test_processes_that_write_at_once_take_turns(database: Database, database_url: str) -> None:
    here = Path(__file__).resolve()
    folders = f"{here.parent}|{here.parents[2]}"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, folders, database_url, f"{n}"]) for n in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    user = repository(database).get("tenant", "ada")
    assert user is not None
    assert (user.version, user.pairs) == (20, 20)
