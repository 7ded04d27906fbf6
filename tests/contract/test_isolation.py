"""Two tenants on one server: neither sees anything of the other, whatever it asks."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from guarded import Guarded

PAIR = {"prompt": "How was it?", "chosen": "Short and plain.", "rejected": "Well, as one might perhaps put it, fine."}
OPPOSITE = {**PAIR, "chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}


class Recorded:
    """A client that keeps everything that it was ever answered."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.seen = ""

    def __call__(self, method: str, url: str, **options: Any) -> httpx.Response:
        response = self._client.request(method, url, **options)
        self.seen += "\n".join([str(response.headers), response.text, ""])
        return response


@pytest.fixture
def tenants(guarded: Guarded) -> Iterator[tuple[Recorded, Recorded, str, str]]:
    """Clients of two new tenants, and their names."""
    one, two = (f"tenant-{uuid.uuid4().hex[:8]}" for _ in range(2))
    with guarded.client(guarded.key(one)) as a, guarded.client(guarded.key(two)) as b:
        yield Recorded(a), Recorded(b), one, two


def test_nothing_of_one_tenant_reaches_another(tenants: tuple[Recorded, Recorded, str, str]) -> None:
    a, b, name_a, name_b = tenants
    common, private = "ada", [f"private-{uuid.uuid4().hex}" for _ in range(3)]
    score = {"user_id": common, "prompt": "And now?", "completions": ["Fine.", "It was, all things considered, fine."]}
    weights: list[float] = []
    for user in (common, *private):
        for _ in range(3):
            headers = {"idempotency-key": f"key-{user}"}
            answer = a("POST", f"/users/{user}/adapt", json={"pairs": [PAIR]}, headers=headers)
            assert answer.status_code == 200
            weights = answer.json()["weights"]
        assert a("POST", f"/users/{user}/adapt", json={"pairs": [PAIR]}).json()["version"] == 2
    personal = a("POST", "/score", json=score).json()
    said = a("GET", f"/users/{common}/evidence").json()["evidence"][0]["id"]
    assert personal["user_state"] == "adapted"

    # The same names and keys mean nothing of the other's.
    assert b("GET", "/users").json() == {"users": [], "next": None}
    assert b("GET", f"/users?after={private[0][:-1]}").json() == {"users": [], "next": None}
    cold = b("POST", "/score", json=score).json()
    assert (cold["user_state"], cold["version"]) == ("cold_start", 0)
    assert cold["rewards"] != personal["rewards"]
    assert {"tokenise", "engine"} <= set(cold["timings_ms"]), "the other's cached texts are no hits here"
    for user in private:
        assert b("GET", f"/users/{user}").status_code == 404
        assert b("DELETE", f"/users/{user}").status_code == 404
        for of_user in ("versions", "evidence", "export"):
            assert b("GET", f"/users/{user}/{of_user}").status_code == 404
        assert b("DELETE", f"/users/{user}/evidence?id={said}").status_code == 404
        assert b("POST", f"/users/{user}/rollback", json={"version": 1}).status_code == 404
        assert b("POST", f"/users/{user}/reset", json={"forget": True}).status_code == 404
        behind = b("POST", "/score", json={**score, "user_id": user, "min_version": 1})
        assert behind.status_code == 409
        assert "at version 0" in behind.text
    replay = b(
        "POST", f"/users/{common}/adapt", json={"pairs": [OPPOSITE]}, headers={"idempotency-key": f"key-{common}"}
    ).json()
    assert (replay["replayed"], replay["version"], replay["pairs_total"]) == (False, 1, 1)
    assert [each["version"] for each in b("GET", f"/users/{common}/versions").json()["versions"]] == [1]
    assert b("DELETE", f"/users/{common}/evidence?id={said}").status_code == 404, "their keys are others'"
    assert b("POST", f"/users/{common}/rollback", json={"version": 2}).status_code == 409
    assert b("DELETE", f"/users/{common}").status_code == 204

    # And nothing of that happened to the one.
    assert a("GET", f"/users/{common}").json()["version"] == 2
    assert a("POST", "/score", json=score).json()["rewards"] == personal["rewards"]
    for secret in (*private, name_a, *map(str, weights)):
        assert secret not in b.seen
    assert name_b not in a.seen


def test_what_one_tenant_scores_is_no_hit_for_another(tenants: tuple[Recorded, Recorded, str, str]) -> None:
    a, b, _, _ = tenants
    score = {"user_id": "x", "prompt": f"Only once: {uuid.uuid4().hex}", "completions": ["yes", "no"]}
    for client in (a, b):
        stages = [set(client("POST", "/score", json=score).json()["timings_ms"]) for _ in range(2)]
        assert "engine" in stages[0]
        assert "engine" not in stages[1]


def test_a_tenant_that_is_full_or_busy_costs_others_nothing(guarded: Guarded) -> None:
    one, two = (f"tenant-{uuid.uuid4().hex[:8]}" for _ in range(2))
    guarded.tenants.set_quotas(one, requests_per_minute=2, max_users=0)
    with guarded.client(guarded.key(one)) as a, guarded.client(guarded.key(two)) as b:
        assert a.post("/users/ada/adapt", json={"pairs": [PAIR]}).json()["quota"] == "users"
        assert [a.get("/info").status_code for _ in range(3)] == [200, 429, 429]
        assert b.post("/users/ada/adapt", json={"pairs": [PAIR]}).status_code == 200
        assert [b.get("/info").status_code for _ in range(5)] == [200] * 5
