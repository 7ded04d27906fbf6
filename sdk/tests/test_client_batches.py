"""Many items in few requests, and single scores of many callers in one."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future
from typing import Any

import httpx
import pytest
from twins import INFO, KINDS, Server, Twin, problem, scored, server_of

import metareward_client as mc
from metareward_client._many import Part, requests_of
from metareward_client._together import Batch, Wish

both = pytest.mark.parametrize("kind", KINDS)


def item(prompt: str, *completions: str, user_id: str | None = None) -> mc.ScoreItem:
    return mc.ScoreItem(prompt=prompt, completions=list(completions), user_id=user_id)


def sizes(server: Server) -> list[int]:
    return [sum(len(item["completions"]) for item in body["items"]) for body in server.bodies]


@both
def test_items_are_answered_in_order_within_the_servers_limits(kind: str) -> None:
    items = [item(f"prompt {i % 3}", *["x" * (i + 1)] * (1 + i % 4)) for i in range(30)]
    server = server_of(kind)
    with Twin(kind, server) as twin:
        scores = twin.score_many(items)
        assert [score.rewards for score in scores] == [[i + 1.0] * (1 + i % 4) for i in range(30)]
        assert {score.checkpoint_id for score in scores} == {"0123456789abcdef"}
        twin.score_many(items[:1])
    assert max(sizes(server)) <= INFO["limits"]["max_completions"]  # type: ignore[index]
    assert server.most > 1, "several at a time"


@both
def test_limits_are_asked_once(kind: str) -> None:
    paths: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return scored(request)

    with Twin(kind, answer) as twin:
        for _ in range(3):
            twin.score_many([item("p", "a")])
        assert twin.score_many([]) == []
    assert paths == ["/info", "/score", "/score", "/score"]


@both
def test_no_more_requests_than_allowed_are_under_way(kind: str) -> None:
    server = server_of(kind)
    with Twin(kind, server, max_concurrency=3, batch_size=1) as twin:
        twin.score_many([item(f"p{i}", "a") for i in range(12)])
    assert len(server.bodies) == 12
    assert server.most == 3


@both
def test_the_first_failure_ends_the_rest_and_names_the_callers_item(kind: str) -> None:
    refusal = [{"field": "items[1].completions[0]", "message": "is empty"}]

    def answer(request: httpx.Request) -> httpx.Response:
        if b'"bad"' in request.content:
            return problem(422, "invalid-input", errors=refusal)
        return scored(request)

    server = server_of(kind, answer)
    items = [item(f"p{i // 2}", "a" if i != 7 else "bad") for i in range(400)]
    with Twin(kind, server, max_concurrency=2, batch_size=2) as twin:
        with pytest.raises(mc.InvalidRequest) as caught:
            twin.score_many(items)
        assert [error.field for error in caught.value.errors] == ["items[7].completions[0]"]
    assert len(server.bodies) < 20, "what was not sent yet never is"


@both
def test_all_of_many_items_share_one_deadline(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metareward_client._attempts.FIRST_WAIT_S", 0.01)
    first: dict[bytes, float] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        # Busy with each request for 0.3 s, one after the other.
        busy = time.monotonic() - first.setdefault(request.content, time.monotonic()) < 0.3
        return problem(503) if busy and request.url.path == "/score" else scored(request)

    items = [item("p", "a"), item("q", "a")]
    with Twin(kind, answer, batch_size=1, max_concurrency=1) as twin, pytest.raises(mc.TemporaryError):
        twin.score_many(items, deadline=0.5)


def parts(*described: tuple[str, int, int]) -> list[Part]:
    return [Part(b"x" * size, completions, prompt) for prompt, completions, size in described]


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ([], []),
        ([("p", 1, 9)], [[0]]),
        ([("p", 2, 9), ("q", 2, 9), ("p", 2, 9)], [[0, 2], [1]]),
        ([("p", 1, 9), ("q", 2, 9), ("r", 1, 9)], [[0, 1, 2]]),
        ([("p", 3, 9), ("q", 2, 9), ("q", 2, 9)], [[0], [1, 2]]),
        ([("p", 2, 9), ("p", 2, 9), ("p", 2, 9), ("q", 2, 9)], [[0, 1], [2, 3]]),
        ([("p", 9, 9), ("q", 1, 9)], [[0], [1]]),
        ([("q", 1, 9), ("p", 9, 9), ("p", 1, 9)], [[0], [1], [2]]),
        ([("p", 1, 400), ("q", 1, 400), ("r", 1, 400)], [[0], [1], [2]]),
        ([("p", 1, 4000), ("q", 1, 9)], [[0], [1]]),
    ],
)
def test_items_of_a_prompt_travel_together_where_they_fit(
    described: list[tuple[str, int, int]], expected: list[list[int]]
) -> None:
    assert requests_of(parts(*described), completions=4, max_bytes=256 + 500) == expected


@both
def test_single_scores_of_concurrent_callers_are_one_request(kind: str) -> None:
    server = server_of(kind)
    asks = [{"prompt": f"p{i % 4}", "completion": "x" * i, "user_id": f"u{i % 2}"} for i in range(32)]
    with Twin(kind, server, batch_size=32, batch_window_s=5) as twin:
        began = time.monotonic()
        assert twin.together(asks) == [float(i) for i in range(32)]
    assert time.monotonic() - began < 4, "a full batch does not wait for the window to close"
    (body,) = server.bodies
    assert len(body["items"]) == 4, "completions of one prompt for one user are one item"


@both
def test_what_does_not_go_together_goes_apart(kind: str) -> None:
    server = server_of(kind)
    asks = [{"prompt": "p", "completion": "x" * i, "truncate": i % 2 == 0} for i in range(16)]
    with Twin(kind, server, batch_window_s=0.1) as twin:
        assert twin.together(asks) == [float(i) for i in range(16)]
    assert sorted((body["truncate"], size) for body, size in zip(server.bodies, sizes(server), strict=True)) == [
        (False, 8),
        (True, 8),
    ]


@both
def test_batches_are_no_larger_than_asked_and_requests_no_more(kind: str) -> None:
    server = server_of(kind)
    asks = [{"prompt": "p", "completion": "x" * i} for i in range(64)]
    with Twin(kind, server, batch_size=8, max_concurrency=2) as twin:
        assert twin.together(asks) == [float(i) for i in range(64)]
    assert max(sizes(server)) <= 8
    assert server.most <= 2


@both
def test_a_bad_one_fails_alone(kind: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        errors = [
            {"field": f"items[{i}].completions[{j}]", "message": "is empty; send the text"}
            for i, item in enumerate(json.loads(request.content)["items"])
            for j, completion in enumerate(item["completions"])
            if completion == "bad"
        ]
        return problem(422, "invalid-input", errors=errors) if errors else scored(request)

    server = server_of(kind, answer)
    asks = [{"prompt": f"p{i % 3}", "completion": "bad" if i % 5 == 0 else "x" * i} for i in range(20)]
    with Twin(kind, server, batch_size=20, batch_window_s=5) as twin:
        found = twin.together(asks)
    for i, each in enumerate(found):
        if i % 5:
            assert each == float(i)
        else:
            assert isinstance(each, mc.InvalidRequest)
            assert each.errors == (("completion", "is empty; send the text"),)
    assert len(server.bodies) == 2, "the rest goes again, once"


@both
def test_who_is_to_blame_is_looked_for_where_the_server_does_not_say(kind: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return problem(413, "too-large") if b"bad" in request.content else scored(request)

    asks = [{"prompt": f"p{i}", "completion": "bad" if i == 11 else "x" * i} for i in range(16)]
    server = server_of(kind, answer)
    with Twin(kind, server, batch_size=16, batch_window_s=5) as twin:
        found = twin.together(asks)
    assert isinstance(found.pop(11), mc.TooLarge)
    assert found == [float(i) for i in range(16) if i != 11]
    assert len(server.bodies) == 9, "halves of 16, 8, 4 and 2"


@both
def test_what_befalls_the_server_befalls_all(kind: str) -> None:
    asks = [{"prompt": "p", "completion": "x" * i, "deadline": 5} for i in range(8)]
    with Twin(kind, lambda request: problem(503, retry_after="60")) as twin:
        found = twin.together(asks)
    assert [type(each) for each in found] == [mc.Overloaded] * 8
    assert len({id(each) for each in found}) == 8, "each has an error of its own"


@both
def test_each_caller_leaves_at_its_own_deadline(kind: str) -> None:
    began = time.monotonic()

    def answer(request: httpx.Request) -> httpx.Response:
        # Busy for longer than the first caller has.
        return scored(request) if time.monotonic() - began > 0.4 else problem(503)

    asks: list[dict[str, Any]] = [
        {"prompt": "p", "completion": "ab", "deadline": 0.1},
        {"prompt": "p", "completion": "abc", "deadline": 10},
    ]
    with Twin(kind, server_of(kind, answer), batch_size=2, batch_window_s=5) as twin:
        impatient, patient = twin.together(asks)
    assert isinstance(impatient, mc.DeadlineExceeded)
    assert patient == 3.0


class Gone(Future[mc.Score]):
    """What a caller waited for who leaves at the last moment."""

    def done(self) -> bool:
        return False


def test_a_caller_that_leaves_at_the_last_moment_takes_nobody_along() -> None:
    gone, stays = Gone(), Future[mc.Score]()
    gone.cancel()
    wishes = [Wish(item("p", "a"), False, 1.0, gone), Wish(item("p", "b"), False, 1.0, stays)]
    score = mc.Score(user_id=None, user_state="population", version=0, rewards=[1.0, 2.0], order=[1, 0])
    Batch(wishes).answered([score])
    assert stays.result(0).rewards == [2.0]
    Batch(wishes).failed(mc.ConnectionFailed("gone"))
