"""Who may do what: every operation of the OpenAPI document, as everybody who should not and everybody who may."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Iterator

import httpx
import pytest
from documented import ROLES, Operation, check_answer, operations, read_document
from guarded import AUTH_CACHE_S, Guarded

from service.api.error_dialects import QUOTA_IS_503

DOCUMENT = read_document()
OPERATIONS = operations(DOCUMENT)
PROTECTED = [operation for operation in OPERATIONS if operation.role]
WRONG_KEY = f"mr_{'a' * 10}_{'b' * 43}"


@pytest.fixture
def nobody(guarded: Guarded) -> Iterator[httpx.Client]:
    with guarded.client() as client:
        yield client


@pytest.fixture(scope="module")
def by_role(guarded: Guarded) -> dict[str, str]:
    return {role: guarded.key("roles", role) for role in ROLES}


def check_refused(operation: Operation, response: httpx.Response, status: int, kind: str) -> None:
    assert response.status_code == status, f"{operation}: {response.text}"
    check_answer(DOCUMENT, operation.path, operation.method, response)
    assert response.json()["type"] == f"urn:metareward:problem:{kind}"
    assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


def test_only_these_are_open_to_everybody(nobody: httpx.Client) -> None:
    assert {operation.path for operation in OPERATIONS if not operation.role} == {"/live", "/ready"}
    for path in ("/", "/live", "/ready", "/docs", "/openapi.json"):
        assert nobody.get(path).status_code in (200, 307), path
    assert nobody.get("/openapi.json").json() == DOCUMENT


@pytest.mark.parametrize(
    "path", ["/nothing", "/users/", "/live/", "/%2Flive", "/Live", "/redoc", "/metrics", "/score/x"]
)
def test_who_has_no_key_learns_nothing_of_other_paths(nobody: httpx.Client, path: str) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        assert nobody.request(method, path).status_code == 401


@pytest.mark.parametrize("operation", PROTECTED, ids=str)
def test_nobody_is_let_in_without_a_good_key(guarded: Guarded, expired_key: str, operation: Operation) -> None:
    revoked = guarded.keys.create("acme", "admin")
    guarded.keys.revoke(revoked.key_id)
    good = guarded.key()
    headers: list[list[tuple[str, str]]] = [
        [],
        *(
            [("authorization", value)]
            for value in (
                "",
                "Bearer",
                good,
                f"Basic {good}",
                f"Bearer: {good}",
                f"Bearer {good} {good}",
                f"Bearer {good}x",
                f"Bearer {good[:-1]}",
                f"Bearer {good.upper()}",
                f"Bearer {WRONG_KEY}",
                f"Bearer {expired_key}",
                f"Bearer {revoked.secret}",
                f"Bearer {'x' * 10_000}",
                "Bearer \xe9\xff",
            )
        ),
        [("authorization", f"Bearer {good}"), ("authorization", f"Bearer {WRONG_KEY}")],
        [("x-api-key", good)],
    ]
    with guarded.client() as client:
        for sent in headers:
            raw = [(name.encode(), value.encode("latin-1")) for name, value in sent]
            response = operation.request(client, headers=raw)
            check_refused(operation, response, 401, "not-authenticated")
            assert good not in response.text
            assert operation.request(client, params={"key": good}).status_code == 401


@pytest.mark.parametrize("operation", PROTECTED, ids=str)
def test_a_key_reaches_as_far_as_its_role(guarded: Guarded, by_role: dict[str, str], operation: Operation) -> None:
    for role in ROLES:
        with guarded.client(by_role[role]) as client:
            response = operation.request(client, user_id="nobody-yet")
            if ROLES.index(role) < ROLES.index(str(operation.role)):
                check_refused(operation, response, 403, "not-allowed")
            else:
                assert response.status_code not in (401, 403), response.text
                check_answer(DOCUMENT, operation.path, operation.method, response)


@pytest.mark.parametrize("operation", [o for o in PROTECTED if o.body is not None], ids=str)
def test_a_role_that_does_not_reach_is_told_before_the_body_is_judged(
    guarded: Guarded, by_role: dict[str, str], operation: Operation
) -> None:
    url = operation.path.replace("{user_id}", "ada")
    for role in ROLES[: ROLES.index(str(operation.role))]:
        with guarded.client(by_role[role]) as client:
            response = client.post(url, content=b"{ no json", headers={"content-type": "application/json"})
            check_refused(operation, response, 403, "not-allowed")


@pytest.mark.parametrize("operation", [o for o in PROTECTED if o.body is not None], ids=str)
def test_a_stranger_is_refused_before_the_body_is_sent(guarded: Guarded, operation: Operation) -> None:
    url = httpx.URL(guarded.server.url)
    head = (
        f"POST {operation.path.replace('{user_id}', 'ada')} HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port or 0), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(12) == b"HTTP/1.1 401"


# What a user that nobody has adapted under can be asked, too.
FOR_ANYBODY = ("/adapt", "/feedback", "/suggest")


@pytest.mark.parametrize(
    "operation", [o for o in PROTECTED if o.of_a_user and not o.path.endswith(FOR_ANYBODY)], ids=str
)
def test_anothers_user_looks_like_nobody(guarded: Guarded, operation: Operation) -> None:
    theirs = f"u{uuid.uuid4().hex}"
    with guarded.client(guarded.key("one")) as one, guarded.client(guarded.key("two")) as two:
        adapt = next(o for o in PROTECTED if o.path.endswith("/adapt"))
        assert adapt.request(one, user_id=theirs).status_code == 200
        answers = [operation.request(two, user_id=name) for name in (theirs, f"u{uuid.uuid4().hex}")]
        for answer in answers:
            check_refused(operation, answer, 404, "not-found")
        seen, unseen = ({**a.json(), "request_id": ""} for a in answers)
        assert seen == unseen
        assert one.get(f"/users/{theirs}").status_code == 200


def test_a_revoked_key_stops_within_the_cache_time(guarded: Guarded) -> None:
    key = guarded.keys.create("acme", "score")
    with guarded.client(key.secret) as client:
        assert client.get("/info").status_code == 200
        guarded.keys.revoke(key.key_id)
        time.sleep(AUTH_CACHE_S)
        assert client.get("/info").status_code == 401


@pytest.mark.parametrize("operation", PROTECTED, ids=str)
def test_requests_beyond_the_quota_are_told_when_to_come_back(guarded: Guarded, operation: Operation) -> None:
    tenant = f"t{uuid.uuid4().hex[:10]}"
    guarded.tenants.set_quotas(tenant, requests_per_minute=1)
    with guarded.client(guarded.key(tenant, "admin")) as client:
        assert operation.request(client).status_code < 429
        refused = operation.request(client)
        # To clients that give up at any 4xx a quota is a reason to wait.
        status = 503 if operation.path in QUOTA_IS_503 else 429
        check_refused(operation, refused, status, "quota-exceeded")
        assert refused.json()["quota"] == "requests"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
    with guarded.client(guarded.key("roles")) as other:
        assert other.get("/info").status_code == 200


def test_tokens_and_users_have_quotas_too(guarded: Guarded) -> None:
    tenant = f"t{uuid.uuid4().hex[:10]}"
    guarded.tenants.set_quotas(tenant, tokens_per_minute=30, max_users=1)
    score = {"user_id": "ada", "prompt": "Why is the sky blue?", "completions": ["Scattering of light." * 3]}
    pairs = {"pairs": [{"prompt": "p", "chosen": "a", "rejected": "b"}]}
    with guarded.client(guarded.key(tenant)) as client:
        # The first pairs are cheap; what follows takes the bucket below zero, which is allowed once.
        assert client.post("/users/ada/adapt", json=pairs).status_code == 200
        refused = client.post("/users/bob/adapt", json=pairs)
        assert (refused.status_code, refused.json()["quota"]) == (429, "users")
        assert int(refused.headers["retry-after"]) >= 60
        assert client.get("/users/bob").status_code == 404
        assert client.post("/users/ada/adapt", json=pairs).status_code == 200
        answers = [client.post("/score", json={**score, "prompt": f"{score['prompt']} {i}"}) for i in range(4)]
        refused = next(answer for answer in answers if answer.status_code != 200)
        assert (refused.status_code, refused.json()["quota"]) == (429, "tokens")
        check_answer(DOCUMENT, "/score", "post", refused)
        cached = {"user_id": "ada", "prompt": "p", "completions": ["a", "b"]}
        assert client.post("/score", json=cached).status_code == 200, "what is cached is free"


def test_on_loopback_a_key_that_is_sent_must_be_a_good_one(api: httpx.Client) -> None:
    assert api.get("/info").status_code == 200
    for value in (f"Bearer {WRONG_KEY}", "Bearer x", "Bearer None", "Basic eDp5", "Basic none"):
        assert api.get("/info", headers={"authorization": value}).status_code == 401


def test_clients_that_insist_on_a_key_may_send_none_where_none_is_needed(
    api: httpx.Client, nobody: httpx.Client
) -> None:
    for value in ("Bearer none", "Bearer EMPTY"):
        assert api.get("/info", headers={"authorization": value}).status_code == 200
        assert nobody.get("/info", headers={"authorization": value}).status_code == 401


def test_logs_name_key_and_tenant_and_never_the_key(guarded: Guarded) -> None:
    key = guarded.keys.create("logged", "score")
    with guarded.client(key.secret) as client:
        assert client.get("/info").status_code == 200
    give_up_at = time.monotonic() + 10
    while key.key_id not in guarded.server.output and time.monotonic() < give_up_at:
        time.sleep(0.05)
    assert key.key_id in guarded.server.output
    assert "logged" in guarded.server.output
    assert key.secret not in guarded.server.output
    assert key.secret[14:] not in guarded.server.output
