"""The server as a process: what a newcomer does, and what must survive a kill."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.server import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
ADAPT = json.loads((ROOT / "examples/adapt.json").read_text())
SCORE = json.loads((ROOT / "examples/score.json").read_text())


def metareward(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )


def test_the_session_that_serve_prints_changes_a_ranking(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        commands = [line.strip() for line in server.output.splitlines() if line.strip().startswith("curl")]
        assert len(commands) == 4
        answers = [
            json.loads(subprocess.run(shlex.split(command), capture_output=True, check=True, cwd=ROOT).stdout)
            for command in commands[:3]
        ]
        before, adapted, after = answers
        assert before["user_state"] == "cold_start"
        assert adapted["version"] == 1
        assert adapted["support_after"]["loss"] < adapted["support_before"]["loss"]
        assert after["user_state"] == "adapted"
        assert after["order"] != before["order"], "the ranking follows the person's taste"
        subprocess.run(shlex.split(commands[3]), check=True, cwd=ROOT)
        with server.client() as client:
            assert client.post("/score", json=SCORE).json()["user_state"] == "cold_start"
        assert server.stop() in (0, -signal.SIGTERM)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_answered_adapt_survives_kill_9(tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> None:
    settings = {} if kind == "sqlite" else {"DATABASE_URL": request.getfixturevalue("postgres_url")}
    server = ServerProcess(tmp_path, **settings)
    with server:
        with server.client() as client:
            adapted = client.post("/users/ada/adapt", json=ADAPT, headers={"Idempotency-Key": "one"}).json()
            scored = client.post("/score", json=SCORE).json()
        server.kill()
        server.start()
        with server.client() as client:
            user = client.get("/users/ada").json()
            assert (user["version"], user["weights"], user["pairs"]) == (1, adapted["weights"], len(ADAPT["pairs"]))
            again = client.post("/users/ada/adapt", json=ADAPT, headers={"Idempotency-Key": "one"}).json()
            assert (again["version"], again["replayed"]) == (1, True)
            restarted = client.post("/score", json={**SCORE, "min_version": 1}).json()
            np.testing.assert_allclose(restarted["rewards"], scored["rewards"], atol=1e-6)
            # Pairs are a set: sending them again stores nothing and leaves the weights where they are.
            repeated = client.post("/users/ada/adapt", json=ADAPT).json()
            assert (repeated["version"], repeated["pairs_stored"], repeated["weights"]) == (2, 0, adapted["weights"])


def test_the_quickstart_example_runs_as_written(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        result = subprocess.run(
            [sys.executable, "examples/quickstart.py", server.url], capture_output=True, text=True, check=True, cwd=ROOT
        )
    before, after = result.stdout.split("grace (adapted):")
    assert before.startswith("nobody (cold_start):")
    first = [part.strip().splitlines()[0] for part in (before.partition(":")[2], after)]
    assert "thrilled" in first[0]
    assert "Wear gloves" in first[1]


def test_life_of_a_user(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server, server.client() as client:
        assert client.get("/users").json() == {"users": [], "next": None}
        for name in ("bob", "ada", "eve"):
            assert client.post(f"/users/{name}/adapt", json=ADAPT).status_code == 200
        page = client.get("/users?limit=2").json()
        assert [user["user_id"] for user in page["users"]] == ["ada", "bob"]
        rest = client.get(f"/users?limit=2&after={page['next']}").json()
        assert [user["user_id"] for user in rest["users"]] == ["eve"]
        assert rest["next"] is None
        replaced = client.post("/users/ada/adapt", json={"pairs": ADAPT["pairs"][:1], "mode": "replace"}).json()
        assert (replaced["version"], replaced["pairs_total"]) == (2, 1)
        many = {"items": [{**SCORE, "user_id": name} for name in ("ada", "bob", "nobody")]}
        results = client.post("/score", json=many).json()["results"]
        assert [result["user_state"] for result in results] == ["adapted", "adapted", "cold_start"]
        assert client.delete("/users/ada").status_code == 204
        assert client.get("/users/ada").status_code == 404
        assert client.post("/score", json={**SCORE, "user_id": "ada"}).json()["user_state"] == "cold_start"


def test_texts_are_neither_stored_nor_logged(tmp_path: Path) -> None:
    secret = "xyzzy-plugh-secret"
    pair = {"prompt": f"{secret} one", "chosen": f"{secret} two", "rejected": f"{secret} three"}
    with ServerProcess(tmp_path, LOG_LEVEL="debug") as server, server.client() as client:
        assert client.post("/users/ada/adapt", json={"pairs": [pair]}).status_code == 200
        assert client.post("/users/ada/adapt", json={"pairs": [{**pair, "rejected": f"{secret} two"}]}).is_error
        client.post("/score", json={"user_id": "ada", "prompt": secret, "completions": [secret, "other"]})
        assert server.stop() in (0, -signal.SIGTERM)
        assert secret not in server.output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files)
    assert not [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        (["serve", "--host", "0.0.0.0"], {}, "metareward keys create"),
        (["serve", "--checkpoint", "nowhere"], {}, "is this a checkpoint directory"),
        (["serve", "--backbone", "no/such-model"], {"HF_HUB_OFFLINE": "1"}, "no/such-model"),
        (["serve", "--database-url", "mysql://x"], {}, "unsupported kind"),
        (["serve"], {"SECRET_KEY": "short"}, "SECRET_KEY"),
        (["serve"], {"MAX_BATCH_TOKENS": "many"}, "MAX_BATCH_TOKENS"),
    ],
)
def test_a_wrong_start_says_what_to_set(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], complaint: str
) -> None:
    result = metareward(*arguments, DATA_DIR=str(tmp_path), PORT="0", METRICS_PORT="0", **environment)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1


def test_a_taken_port_is_told_at_once(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        for flag, url in (("--port", server.url), ("--metrics-port", server.metrics_url)):
            port = httpx.URL(url).port
            result = metareward("serve", flag, str(port), DATA_DIR=str(tmp_path / "other"), PORT="0", METRICS_PORT="0")
            assert result.returncode == 2
            assert re.search(rf"PORT: cannot listen on {port} .*free port by {flag}", result.stderr)
            assert "self-check" not in result.stderr, "the model was loaded first"


def test_two_servers_on_one_data_dir_share_users_and_secret(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as one, ServerProcess(tmp_path) as two, one.client() as here, two.client() as there:
        assert here.post("/users/ada/adapt", json=ADAPT).json()["version"] == 1
        assert there.post("/score", json={**SCORE, "min_version": 1}).json()["user_state"] == "adapted"
        repeated = there.post("/users/ada/adapt", json=ADAPT).json()
        assert (repeated["version"], repeated["pairs_stored"]) == (2, 0)


def test_checkpoint_and_database_commands(tmp_path: Path) -> None:
    shown = metareward("checkpoint", "show")
    assert shown.returncode == 0
    assert "minilm" in shown.stdout
    verified = metareward("checkpoint", "verify", "--engine")
    assert verified.returncode == 0, verified.stderr
    assert "recorded" in verified.stdout
    url = f"sqlite:///{tmp_path / 'x.db'}"
    assert metareward("db", "check", DATABASE_URL=url).returncode == 2
    assert metareward("db", "upgrade", DATABASE_URL=url).returncode == 0
    assert metareward("db", "check", DATABASE_URL=url).returncode == 0
    assert metareward("db", "downgrade", "base", "--yes", DATABASE_URL=url).returncode == 0
    refused = metareward("serve", DATABASE_URL=url, PORT="0", METRICS_PORT="0", DATA_DIR=str(tmp_path))
    assert refused.returncode == 2
    assert "metareward db upgrade" in refused.stderr
