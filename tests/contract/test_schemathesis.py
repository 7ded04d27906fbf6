"""Requests made from the OpenAPI document itself: whatever it allows is answered as it says.

To add another server, add its document and how to reach it to `SERVERS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import schemathesis
from documented import REST_DOCUMENT, ROOT, WORKER_DOCUMENT
from guarded import WORKER_KEY, Guarded
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
EXAMPLES = 40


def rest_server(request: pytest.FixtureRequest) -> tuple[str, str]:
    """URL and a key of a server whose every route is behind keys."""
    guarded: Guarded = request.getfixturevalue("guarded")
    url, key = guarded.server.url, guarded.key("schemathesis", "admin")
    # Whether an example happens to make the user before another deletes it depends on what else is tested.
    pair = {"prompt": "Which?", "chosen": "This.", "rejected": "That.", "id": POSSIBLE_QUERY["id"][0]}
    headers = {"Authorization": f"Bearer {key}"}
    user = f"{url}/users/{POSSIBLE['user_id']}"
    httpx.delete(user, headers=headers)
    httpx.post(f"{user}/adapt", json={"pairs": [pair]}, headers=headers).raise_for_status()
    # So does whether there is a checkpoint to go back to.
    first, POSSIBLE["checkpoint_id"] = guarded.checkpoint_ids
    for checkpoint_id in (POSSIBLE["checkpoint_id"], first):
        body = {"checkpoint_id": checkpoint_id}
        httpx.post(f"{url}/admin/checkpoints/activate", json=body, headers=headers).raise_for_status()
    return url, key


def worker_server(request: pytest.FixtureRequest) -> tuple[str, str]:
    """URL and key of a worker."""
    return request.getfixturevalue("worker").url, WORKER_KEY


# By name: the document, and a function that gives (url, key) of a running server.
SERVERS: dict[str, tuple[str, Callable[[pytest.FixtureRequest], tuple[str, str]]]] = {
    "rest": (REST_DOCUMENT, rest_server),
    "worker": (WORKER_DOCUMENT, worker_server),
}


def cases() -> list[Any]:
    """Every operation with what it allows, and, where it takes anything at all, with what it does not."""
    found = []
    for name, (path, reach) in SERVERS.items():
        document = json.loads((ROOT / path).read_text())
        for result in schemathesis.openapi.from_dict(document).get_all_operations():
            operation = result.ok()
            told = document["paths"][operation.path][operation.method]
            for mode in GenerationMode:
                if mode is GenerationMode.POSITIVE or told.keys() & {"parameters", "requestBody"} or told["security"]:
                    identity = f"{name} {operation.method} {operation.path} {mode.value}"
                    found.append(pytest.param(operation, reach, mode, id=identity))
    return found


# What a server takes for fields whose rule is told in words, so that breaking it is explained.
POSSIBLE: dict[str, Any] = {
    "user_id": "ada",
    "model": None,
    "user": "ada",
    "min_version": 0,
    "version": 1,
    "event_time": "2026-01-02T03:04:05Z",
}
POSSIBLE_QUERY = {"id": ["pair-7"]}


def with_what_is_possible(value: Any) -> Any:
    """`value` with users, versions and models that the server takes."""
    if isinstance(value, dict):
        return {k: POSSIBLE.get(k, with_what_is_possible(v)) for k, v in value.items()}
    return [with_what_is_possible(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("operation", "reach", "mode"), cases())
def test_what_is_sent_is_answered_as_documented(
    request: pytest.FixtureRequest,
    operation: Any,
    reach: Callable[[pytest.FixtureRequest], tuple[str, str]],
    mode: GenerationMode,
) -> None:
    url, key = reach(request)
    answered = set()

    @seed(20260101)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def check(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            case.body = with_what_is_possible(case.body)
            case.path_parameters = with_what_is_possible(case.path_parameters)
            case.query = {k: POSSIBLE_QUERY.get(k, v) for k, v in (case.query or {}).items()}
        if (waits := str((case.headers or {}).get("x-timeout-ms"))).isdecimal() and int(waits):
            case.headers["x-timeout-ms"] = "60000"  # who waits for a millisecond gets 504, as documented
        response = case.call(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)
        answered.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    check()
    if mode is GenerationMode.POSITIVE:
        assert {200, 204} & answered
        assert 401 not in answered
    else:  # wrong keys are among what is sent
        assert {400, 401, 404, 422} & answered
