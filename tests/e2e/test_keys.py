"""Keys from the command line to a server that others can reach."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from servers import free_port
from typer.testing import CliRunner, Result

from benchmarks.server import ServerProcess
from service.cli import app
from service.errors import ConfigurationError, InvalidInput, MetarewardError, NotFound, Unavailable

ROOT = Path(__file__).resolve().parents[2]
KEY = re.compile(r"mr_[a-z2-7]{10}_[A-Za-z0-9_-]{43}")
BODY = {"user_id": "ada", "prompt": "p", "completions": ["a", "b"]}


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env=environment)


def outcome(*arguments: str, **environment: str) -> str:
    result = run(*arguments, **environment)
    assert result.exit_code == 0, result.output
    return result.stdout


def failure(*arguments: str, **environment: str) -> MetarewardError:
    error = run(*arguments, **environment).exception
    assert isinstance(error, MetarewardError), error
    return error


@pytest.fixture(params=["embedded", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Where the commands work: an embedded database that is not there yet, or PostgreSQL."""
    if request.param == "embedded":
        return {"DATA_DIR": str(tmp_path / "data"), "DATABASE_URL": ""}
    return {"DATA_DIR": str(tmp_path), "DATABASE_URL": request.getfixturevalue("postgres_url")}


def test_the_life_of_a_key_on_the_command_line(place: dict[str, str]) -> None:
    options = ("--tenant", "acme", "--role", "adapt", "--name", "the trainer", "--expires-in", "90d")
    printed = outcome("keys", "create", *options, **place)
    assert KEY.fullmatch(printed.strip()), "the key alone is on stdout"
    outcome("keys", "create", "--tenant", "other", "--role", "score", **place)
    assert outcome("keys", "create", "--tenant", "third", "--role", "score", "--if-none", **place) == ""

    (listed,) = json.loads(outcome("keys", "list", "--tenant", "acme", "--json", **place))
    assert (listed["tenant"], listed["role"], listed["name"], listed["state"]) == (*options[1:6:2], "good")
    assert listed["key_id"] == printed.split("_")[1]
    lasts = datetime.fromisoformat(listed["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=89) < lasts <= timedelta(days=90)
    table = outcome("keys", "list", **place)
    assert [line.split()[1] for line in table.splitlines()] == ["tenant", "acme", "other"]
    assert printed.strip()[14:] not in table

    outcome("keys", "revoke", listed["key_id"], **place)
    (listed,) = json.loads(outcome("keys", "list", "--tenant", "acme", "--json", **place))
    assert listed["state"] == "revoked"


def test_quotas_on_the_command_line(place: dict[str, str]) -> None:
    limits = ("--requests-per-minute", "600", "--tokens-per-minute", "5000", "--max-users", "0")
    assert outcome("tenants", "set", "acme", *limits, **place).startswith("acme: requests_per_minute 600,")
    outcome("tenants", "set", "acme", "--tokens-per-minute", "unlimited", **place)
    (listed,) = json.loads(outcome("tenants", "list", "--json", **place))
    quotas = {name: listed[name] for name in ("requests_per_minute", "tokens_per_minute", "max_users")}
    assert quotas == {"requests_per_minute": 600, "tokens_per_minute": None, "max_users": 0}
    assert "unlimited" in outcome("tenants", "list", **place)


def test_mistakes_are_told_by_the_option(tmp_path: Path) -> None:
    place = {"DATA_DIR": str(tmp_path), "DATABASE_URL": ""}
    create = ("keys", "create", "--role", "score", "--tenant")
    for tenant in ("", "a:b", "a/b", "-a", "a" * 65, "ä", "a\n"):
        assert "tenant: must be" in str(failure(*create, tenant, **place))
    for time in ("5", "d", "-1d", "0d", "999999w", "1y"):
        assert "expires-in" in str(failure(*create, "acme", "--expires-in", time, **place))
    assert "name" in str(failure(*create, "acme", "--name", "a\nb", **place))
    for value in ("0", "-1", "x", "1.5", "9" * 30):
        error = failure("tenants", "set", "acme", "--requests-per-minute", value, "--max-users", "no", **place)
        assert isinstance(error, InvalidInput)
        assert [issue.field for issue in error.issues] == ["--requests-per-minute", "--max-users"]
    assert isinstance(failure("keys", "revoke", "nothing", **place), NotFound)
    key = outcome(*create, "acme", **place).strip()
    assert "whole key" in str(failure("keys", "revoke", key, **place))
    assert key not in str(failure("keys", "revoke", key, **place))
    assert run(*create, "acme", "--role", "root", **place).exit_code == 2


def test_a_database_that_is_away_or_old_is_told(tmp_path: Path) -> None:
    away = f"postgresql://me:hunter2@127.0.0.1:{free_port()}/x"
    error = failure("keys", "list", "--database-url", away, DATABASE_TIMEOUT_S="2")
    assert isinstance(error, Unavailable)
    assert "hunter2" not in str(error)
    error = failure("keys", "list", "--database-url", f"sqlite:///{tmp_path / 'empty.db'}")
    assert isinstance(error, ConfigurationError)
    assert "metareward db upgrade" in str(error)


def test_a_server_that_others_reach_wants_a_key_and_takes_any_host_name(tmp_path: Path) -> None:
    place = {"DATA_DIR": str(tmp_path), "DATABASE_URL": ""}
    key = outcome("keys", "create", "--tenant", "acme", "--role", "adapt", **place)
    with ServerProcess(tmp_path, HOST="0.0.0.0") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        headers = {"authorization": f"Bearer {key.strip()}", "host": "rewards.example.org"}
        assert httpx.post(f"{url}/score", json=BODY, headers=headers).status_code == 200
        assert httpx.post(f"{url}/score", json=BODY).status_code == 401
        assert httpx.get(f"{url}/live", headers={"host": "10.0.0.7"}).status_code == 200

        # What is printed to be copied, and the example, work with a key.
        session = [line.strip() for line in server.output.splitlines() if line.strip().startswith("curl")]
        assert len(session) == 4
        shell = {"cwd": ROOT, "capture_output": True, "text": True, "check": True}
        environment = {**os.environ, "KEY": key.strip(), "METAREWARD_API_KEY": key.strip()}
        answers = [subprocess.run(["sh", "-c", line], env=environment, **shell).stdout for line in session]
        states = [json.loads(answer).get("user_state", "-") for answer in answers[:3]]
        assert states == ["cold_start", "-", "adapted"]
        example = subprocess.run([sys.executable, "examples/quickstart.py", url], env=environment, **shell)
        assert "grace (adapted):" in example.stdout


def test_without_its_database_a_server_starts_and_lets_nobody_in(tmp_path: Path) -> None:
    away = {"DATABASE_URL": f"postgresql://me@127.0.0.1:{free_port()}/x", "DATABASE_TIMEOUT_S": "2"}
    unseen = f"mr_{'a' * 10}_{'b' * 43}"
    with ServerProcess(tmp_path, AUTH="required", **away) as server, server.client() as client:
        assert client.get("/ready").json()["degraded"]
        for _ in range(3):
            refused = client.get("/info", headers={"authorization": f"Bearer {unseen}"})
            assert (refused.status_code, refused.json()["type"]) == (503, "urn:metareward:problem:unavailable")
            assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/info").status_code == 401
