"""`metareward doctor`: each broken part is found, told apart from the others, and comes with what mends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis_server import RedisServer
from servers import PostgresServer, free_port

from benchmarks.server import ServerProcess
from benchmarks.worker import WorkerProcess
from service.errors import Unavailable
from service.runtime.diagnosis import Finding, diagnose
from service.settings import Settings
from service.store import open_database
from service.store.keys import KeyRepository
from service.store.migrate import upgrade

SECRET = "a secret that every replica has, of length 40"
ENGINE_KEY = "e" * 40


def look(folder: Path, **settings: Any) -> dict[str, Finding]:
    given = {"data_dir": folder, "port": free_port(), "metrics_port": free_port(), **settings}
    findings = list(diagnose(Settings(_env_file=None, **given), load_engine=False))
    return {finding.part: finding for finding in findings}


def test_a_fresh_folder_is_well_and_stays_as_it_is(tmp_path: Path) -> None:
    found = look(tmp_path / "data")
    assert {finding.status for finding in found.values()} <= {"ok", "skipped", "warning"}
    assert found["engine"].status == found["database"].status == found["secret"].status == "ok"
    assert not (tmp_path / "data").exists(), "looking makes nothing"


def test_a_password_among_the_workers_is_refused_and_not_repeated(tmp_path: Path) -> None:
    found = look(tmp_path, engine_url=f"http://me:s3cret@127.0.0.1:{free_port()}")
    assert found["engine"].status == "failed"
    assert "without a user, a password" in found["engine"].detail
    assert "s3cret" not in repr(found)


def test_the_command_says_what_is_broken_and_ends_with_2(tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PORT": "0",
        "METRICS_PORT": "0",
        "HOME": str(tmp_path),
        "DATABASE_URL": f"postgresql://me:s3cret@127.0.0.1:{free_port()}/x",
        "REDIS_URL": f"redis://:hush@127.0.0.1:{free_port()}/0",
        "SECRET_KEY": SECRET,
        "CHECKPOINT": str(tmp_path / "nothing"),
    }
    command = [sys.executable, "-m", "service", "doctor", "--json"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=Path.cwd()
    )
    found = {line["part"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 2
    assert {part for part, line in found.items() if line["status"] == "failed"} == {"database", "checkpoint"}
    assert found["redis"]["status"] == "warning", "requests do without Redis"
    assert all(line["fix"] for line in found.values() if line["status"] in ("failed", "warning"))
    assert "s3cret" not in done.stdout + done.stderr
    assert "hush" not in done.stdout + done.stderr


def test_a_database_without_tables_and_without_keys(tmp_path: Path, postgres_url: str) -> None:
    settings = {"database_url": postgres_url, "secret_key": SECRET, "auth": "required"}
    found = look(tmp_path, **settings)
    assert found["database"].status == "ok"
    assert found["keys"].status == "failed"
    assert "metareward keys create" in found["keys"].fix
    database = open_database(postgres_url)
    KeyRepository(database).create(
        tenant_id="acme", key_id="k1", digest=b"d" * 32, role="score", name="", expires_at=None
    )
    assert look(tmp_path, **settings)["keys"].status == "ok"
    with database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE alembic_version")
    database.close()
    found = look(tmp_path, **settings)
    assert found["database"].status == "failed"
    assert "metareward db upgrade" in found["database"].fix


def test_an_embedded_database_of_an_older_version_will_be_migrated(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'metareward.db'}")
    upgrade(database, "0001")
    database.close()
    found = look(tmp_path)
    assert found["database"].status == "warning"


def test_ports_that_are_taken_and_secrets_that_are_short(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = look(tmp_path, port=taken.getsockname()[1], secret_key="short")
    assert found["port"].status == "failed"
    assert found["metrics_port"].status == "ok"
    assert found["secret"].status == "failed"


def test_a_server_that_runs_is_not_taken_for_a_stranger(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        ports = {"port": httpx.URL(server.url).port, "metrics_port": httpx.URL(server.metrics_url).port}
        found = look(tmp_path, **ports)
    assert found["port"].status == found["metrics_port"].status == "ok"
    assert "already" in found["port"].detail


def test_rights_that_a_role_lacks_are_named(tmp_path: Path, postgres: PostgresServer, postgres_url: str) -> None:
    name = postgres_url.rpartition("/")[2]
    postgres.execute("CREATE ROLE lesser LOGIN")
    try:
        postgres.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO lesser", name)
        url = postgres_url.replace("postgres@", "lesser@")
        assert look(tmp_path, database_url=url, secret_key=SECRET)["database"].status == "ok"
        postgres.execute("REVOKE UPDATE ON users FROM lesser", name)
        found = look(tmp_path, database_url=url, secret_key=SECRET)["database"]
        assert (found.status, found.detail) == ("failed", "the role may not UPDATE on users")
        database = open_database(url)
        with pytest.raises(Unavailable, match="lacks a right"):
            database.transaction(lambda connection: connection.exec_driver_sql("UPDATE users SET version = 1"))
        database.close()
    finally:
        postgres.execute("DROP OWNED BY lesser", name)
        postgres.execute("DROP ROLE lesser")


def test_redis_in_every_state(tmp_path: Path, redis_server: RedisServer) -> None:
    def redis(url: str) -> Finding:
        return look(tmp_path, redis_url=url, secret_key=SECRET)["redis"]

    assert redis(redis_server.url).status == "ok"
    wrong = redis(redis_server.url_without_password)
    assert wrong.status == "warning"
    assert "REDIS_URL" in wrong.fix
    redis_server.set_read_only(True)
    try:
        assert "read-only" in redis(redis_server.url).detail
    finally:
        redis_server.set_read_only(False)


def test_a_worker_is_asked_what_the_server_would_ask(tmp_path: Path) -> None:
    with WorkerProcess(tmp_path / "worker", ENGINE_API_KEY=ENGINE_KEY) as worker:
        part = f"worker {worker.url}"
        assert look(tmp_path, engine_url=worker.url, engine_api_key=ENGINE_KEY)[part].status == "ok"
        refused = look(tmp_path, engine_url=worker.url, engine_api_key="f" * 40)[part]
        assert refused.status == "failed"
        assert "ENGINE_API_KEY" in refused.fix
        nobody = f"http://127.0.0.1:{free_port()}"
        worker.freeze()
        hung = look(tmp_path, engine_url=worker.url, engine_api_key=ENGINE_KEY)[part]
        worker.thaw()
        assert hung.status == "failed"
        assert "does not answer" in hung.detail
        absent = look(tmp_path, engine_url=nobody, engine_api_key=ENGINE_KEY)[f"worker {nobody}"]
        assert absent.status == "failed"


@pytest.mark.parametrize(("setting", "value"), [("backbone", "no/such/model"), ("checkpoint", Path("/nonexistent"))])
def test_an_engine_that_cannot_be(tmp_path: Path, setting: str, value: Any) -> None:
    found = look(tmp_path, **{setting: value})
    assert any(finding.status == "failed" and finding.fix for finding in found.values())


def test_a_worker_in_another_dtype_is_judged_as_the_server_judges_it(tmp_path: Path) -> None:
    with WorkerProcess(tmp_path / "worker", DTYPE="bfloat16") as worker:
        found = look(tmp_path, engine_url=worker.url)[f"worker {worker.url}"]
        assert found.status == "ok", found
