"""What both clients send and what they make of answers, on a transport without a network."""

from __future__ import annotations

import collections
import copy
import json
import logging
import math
import pickle
from datetime import datetime, timezone
from typing import Any

import httpx
import pytest
from twins import CHANGE, INFO, KINDS, Twin, problem, scored

import metareward_client as mc

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metareward_client._attempts.FIRST_WAIT_S", 0.001)


class Server:
    """Answers with what is listed, then with the last for ever; keeps what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, content=answer.content, headers=answer.headers)


CHANGES: list[tuple[str, tuple[Any, ...], dict[str, Any], str, str]] = [
    ("adapt", ("ada", [{"prompt": "p", "chosen": "a", "rejected": "b"}]), {}, "POST", "/users/ada/adapt"),
    ("feedback", ("ada", [mc.Copied(prompt="p", completion="a")]), {}, "POST", "/users/ada/feedback"),
    ("rollback", ("ada", 2), {}, "POST", "/users/ada/rollback"),
    ("reset", ("ada",), {"forget": True}, "POST", "/users/ada/reset"),
    ("delete_evidence", ("ada", ["p1", "p 2"]), {}, "DELETE", "/users/ada/evidence"),
]


@pytest.mark.parametrize(("name", "arguments", "named", "method", "path"), CHANGES, ids=[each[0] for each in CHANGES])
def test_a_change_keeps_its_key_and_its_body_however_often_it_is_sent(
    kind: str, name: str, arguments: tuple[Any, ...], named: dict[str, Any], method: str, path: str
) -> None:
    server = Server(problem(503), httpx.ReadError("reset"), problem(502), httpx.Response(200, json=CHANGE))
    with Twin(kind, server) as twin:
        assert getattr(twin, name)(*arguments, **named).version == 3
        first = len(server.asked)
        getattr(twin, name)(*arguments, **named)
        getattr(twin, name)(*arguments, **named, idempotency_key="mine")
    assert {(request.method, request.url.path) for request in server.asked} == {(method, path)}
    keys = [request.headers["Idempotency-Key"] for request in server.asked]
    assert first == 4
    assert len(set(keys[:first])) == 1
    assert len(set(keys)) == 3, "another call has another key"
    assert keys[-1] == "mine"
    assert len({(request.content, request.url) for request in server.asked}) == 1
    assert len({request.headers["X-Request-ID"] for request in server.asked}) == len(server.asked)


def test_an_error_of_a_change_has_the_key_to_go_on_with(kind: str) -> None:
    server = Server(httpx.ReadError("reset"))
    with Twin(kind, server, timeout=0.2) as twin, pytest.raises(mc.TemporaryError) as caught:
        twin.reset("ada")
    assert isinstance(caught.value.idempotency_key, str)


def test_erasing_has_no_key_and_is_repeated_only_where_it_was_never_sent(kind: str) -> None:
    server = Server(httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), httpx.Response(204))
    with Twin(kind, server) as twin:
        assert twin.erase("ada") is None
    assert len(server.asked) == 3
    assert not any("Idempotency-Key" in request.headers for request in server.asked)
    for answer in (httpx.ReadError("reset"), httpx.RemoteProtocolError("gone"), problem(503), problem(502)):
        server = Server(answer)
        with Twin(kind, server) as twin, pytest.raises(mc.TemporaryError):
            twin.erase("ada")
        assert len(server.asked) == 1


@pytest.mark.parametrize("bad", ["", "a b", "a\nb", "é", "x" * 256])
def test_an_idempotency_key_that_no_header_can_hold_is_refused_before_it_is_sent(kind: str, bad: str) -> None:
    server = Server(httpx.Response(200, json=CHANGE))
    with Twin(kind, server) as twin, pytest.raises(mc.InvalidRequest, match="idempotency_key"):
        twin.reset("ada", idempotency_key=bad)
    assert not server.asked


def test_every_request_says_who_asks(kind: str) -> None:
    server = Server(httpx.Response(200, json=INFO))
    with Twin(kind, server, base_url="http://127.0.0.1:1/a/prefix/", api_key="k3y", headers={"X-Team": "rl"}) as twin:
        twin.info()
    (asked,) = server.asked
    assert str(asked.url) == "http://127.0.0.1:1/a/prefix/info"
    assert asked.headers["Authorization"] == "Bearer k3y"
    assert asked.headers["X-Team"] == "rl"
    assert asked.headers["User-Agent"].startswith("metareward-client/")
    assert "k3y" not in repr(twin.client)


def test_settings_come_from_the_environment(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAREWARD_URL", "http://reward.test:9")
    monkeypatch.setenv("METAREWARD_API_KEY", "from-env")
    server = Server(httpx.Response(200, json={"live": True}))
    with Twin(kind, server) as twin:
        assert twin.live().live
    assert server.asked[0].url.host == "reward.test"
    assert server.asked[0].headers["Authorization"] == "Bearer from-env"


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "127.0.0.1:8000"},
        {"base_url": "ftp://x"},
        {"base_url": "http://x?y=1"},
        {"api_key": "line\n"},
        {"timeout": 0},
        {"timeout": math.nan},
        {"max_retries": -1},
        {"max_connections": 0},
        {"max_concurrency": 0},
        {"batch_size": 0},
        {"batch_window_s": -1},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Twin(kind, **options)


@pytest.mark.parametrize("deadline", [0, -1, math.nan])
def test_no_time_at_all_is_no_deadline(kind: str, deadline: float) -> None:
    with Twin(kind, scored) as twin, pytest.raises(ValueError, match="deadline"):
        twin.score("p", ["a"], deadline=deadline)


def test_any_user_id_is_one_part_of_the_path(kind: str) -> None:
    server = Server(httpx.Response(200, json=CHANGE))
    with Twin(kind, server) as twin:
        twin.reset("a/../b?c#d%2e é")
    assert server.asked[0].url.raw_path == b"/users/a%2F..%2Fb%3Fc%23d%252e%20%C3%A9/reset"


def test_ids_to_delete_are_one_parameter_each(kind: str) -> None:
    server = Server(httpx.Response(200, json=CHANGE))
    with Twin(kind, server) as twin:
        twin.delete_evidence("ada", ["p1", "a&b=c"])
        with pytest.raises(mc.InvalidRequest, match="ids"):
            twin.delete_evidence("ada", "p1")
    assert [request.url.params.get_list("id") for request in server.asked] == [["p1", "a&b=c"]]


def test_what_is_not_said_is_not_sent(kind: str) -> None:
    server = Server(httpx.Response(200, json=CHANGE))
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    with Twin(kind, server) as twin:
        twin.adapt("ada", [mc.Pair(prompt="p", chosen="a", rejected="b", event_time=at)])
        twin.feedback("ada", [mc.Thumbs(prompt="p", completion="a", up=False)])
    (pair,) = json.loads(server.asked[0].content)["pairs"]
    assert pair == {"prompt": "p", "chosen": "a", "rejected": "b", "tie": False, "event_time": "2026-01-02T03:04:05Z"}
    (event,) = json.loads(server.asked[1].content)["events"]
    assert event == {"type": "thumbs", "prompt": "p", "completion": "a", "up": False, "shown": []}


@pytest.mark.parametrize("make", [tuple, iter, collections.deque, collections.UserList])
def test_any_collection_is_a_list(kind: str, make: Any) -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    server = Server(httpx.Response(200, json=CHANGE))
    with Twin(kind, scored) as twin:
        assert twin.score(make([{"role": "user", "content": "p"}]), make(["ab", "a"])).rewards == [2.0, 1.0]
    with Twin(kind, server) as twin:
        twin.adapt("ada", make([pair, pair]))
    assert len(json.loads(server.asked[0].content)["pairs"]) == 2


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("score", ("p", "one text"), {}, "completions"),
    ("score", ("p", []), {}, "completions"),
    ("score", (3, ["a"]), {}, "prompt"),
    ("score", ("p", 3), {}, "completions"),
    ("score", ([{"role": "user", "content": None}], ["a"]), {}, "prompt[0].content"),
    ("score", ("p", ["a", 7]), {}, "completions[1]"),
    ("score", ("p", ["a", "\ud800"]), {}, "completions[1]"),
    ("score_many", ([mc.ScoreItem(prompt="p", completions=["a"]), {"prompt": "p"}],), {}, "items[1].completions"),
    ("reward", ("p", 3), {}, "completion"),
    ("reward", ("p", "\udfff"), {}, "completion"),
    ("rerank", ("q", "one text"), {}, "documents"),
    ("rerank", ("q", ["a"]), {"top_n": 0}, "top_n"),
    ("adapt", ("ada", [{"prompt": "p", "chosen": "a"}]), {}, "pairs[0].rejected"),
    ("adapt", ("ada", [{**PAIR, "strength": math.inf}]), {}, "pairs[0].strength"),
    ("adapt", ("ada",), {"ratings": [{"prompt": "p", "completion": "a", "rating": math.nan}]}, "ratings[0].rating"),
    ("adapt", ("ada",), {"rankings": [{"prompt": "p", "completions": ["a", "b"], "ranks": [1]}]}, "rankings[0].ranks"),
    (
        "adapt",
        ("ada", [{"prompt": "p", "chosen": "a", "rejected": "b", "event_time": datetime(2026, 1, 2)}]),
        {},
        "pairs[0].event_time",
    ),
    ("adapt", ("ada", [{"prompt": "p", "chosen": "a", "rejected": "b", "colour": 3}]), {}, "pairs[0].colour"),
    ("adapt", ("ada", {"prompt": "p"}), {}, "pairs"),
    ("adapt", ("", []), {}, "user_id"),
    ("adapt", (None, []), {}, "user_id"),
    ("feedback", ("ada", []), {}, "events"),
    ("feedback", ("ada", [{"type": "thumbs", "prompt": "p", "completion": "a"}]), {}, "events[0].up"),
    ("feedback", ("ada", [{"type": "smiled", "prompt": "p"}]), {}, "events[0]"),
    ("suggest", ("ada", [{"prompt": "p", "completions": ["a"]}]), {}, "candidates[0].completions"),
    ("rollback", ("ada", 0), {}, "version"),
]


@pytest.mark.parametrize(("name", "arguments", "named", "field"), WRONG, ids=[f"{each[0]}-{each[3]}" for each in WRONG])
def test_what_cannot_be_right_is_refused_before_it_is_sent(
    kind: str, name: str, arguments: tuple[Any, ...], named: dict[str, Any], field: str
) -> None:
    server = Server(httpx.Response(500))
    with Twin(kind, server) as twin, pytest.raises(mc.InvalidRequest) as caught:
        getattr(twin, name)(*arguments, **named)
    assert field in [each.field for each in caught.value.errors]
    assert caught.value.status is None
    assert not server.asked


SCORE = {"user_id": None, "user_state": "population", "version": 0, "rewards": [1.0, 2.0], "order": [1, 0]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"rewards": [1.0]},
        {"rewards": [1.0, 2.0, 3.0]},
        {"rewards": [1.0, None]},
        {"rewards": [1.0, "high"]},
        {"order": [0, 0]},
        {"order": [1]},
        {"version": None},
    ],
    ids=str,
)
def test_an_answer_that_does_not_fit_is_none(kind: str, wrong: dict[str, Any]) -> None:
    with Twin(kind, Server(httpx.Response(200, json={**SCORE, **wrong}))) as twin, pytest.raises(mc.UnexpectedAnswer):
        twin.score("p", ["a", "b"])


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_reaches_nobody(kind: str, number: str) -> None:
    body = json.dumps(SCORE).replace("2.0", number)
    with Twin(kind, Server(httpx.Response(200, content=body))) as twin, pytest.raises(mc.UnexpectedAnswer):
        twin.score("p", ["a", "b"])


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null"])
def test_another_servers_answer_is_told_so(kind: str, body: bytes) -> None:
    server = Server(httpx.Response(200, content=body))
    with Twin(kind, server) as twin, pytest.raises(mc.UnexpectedAnswer, match="Info"):
        twin.info()


def test_a_newer_server_may_say_more(kind: str) -> None:
    newer = {**SCORE, "user_state": "dreamt", "mood": {"deep": [1]}}
    with Twin(kind, Server(httpx.Response(200, json=newer))) as twin:
        score = twin.score("p", ["a", "b"])
    assert (score.rewards, score.user_state, score.mood) == ([1.0, 2.0], "dreamt", {"deep": [1]})
    with pytest.raises(ValueError, match="frozen"):
        score.rewards = []


def test_a_slow_server_is_left_when_the_time_is_up(kind: str) -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    with Twin(kind, slow) as twin, pytest.raises(mc.DeadlineExceeded) as caught:
        twin.score("p", ["a"], deadline=5)
    assert isinstance(caught.value.request_id, str)


def test_retries_are_logged_without_texts(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="metareward_client")
    server = Server(problem(503), httpx.Response(200, json=SCORE))
    with Twin(kind, server, api_key="k3y") as twin:
        twin.score("secret prompt", ["a", "b"])
    (record,) = [record for record in caplog.records if record.name == "metareward_client"]
    assert "try 2" in record.getMessage()
    assert "secret" not in caplog.text
    assert "k3y" not in caplog.text


def test_a_closed_client_says_so(kind: str) -> None:
    with Twin(kind, scored) as twin:
        twin.score("p", ["a"])
        twin.close()
        for ask in (lambda: twin.score("p", ["a"]), lambda: twin.reward("p", "a")):
            with pytest.raises(RuntimeError, match="closed"):
                ask()


def test_a_copy_has_the_same_settings(kind: str) -> None:
    options: dict[str, Any] = {"base_url": "http://h:1", "api_key": "k", "timeout": 3.0, "headers": {"A": "b"}}
    with Twin(kind, **options) as twin:
        client = twin.client
    for other in (pickle.loads(pickle.dumps(client)), copy.copy(client), copy.deepcopy(client)):
        assert other._config == client._config
        assert type(other) is type(client)


def test_errors_survive_pickling(kind: str) -> None:
    server = Server(problem(429, "quota-exceeded", retry_after="99", quota="tokens"))
    with Twin(kind, server) as twin, pytest.raises(mc.QuotaExceeded) as caught:
        twin.reset("ada")
    error = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(error, mc.QuotaExceeded)
    assert (str(error), error.__dict__) == (str(caught.value), caught.value.__dict__)
    assert (error.retry_after_s, error.quota, error.kind) == (99.0, "tokens", "quota-exceeded")


def test_a_transport_of_the_other_kind_is_refused(kind: str) -> None:
    transport = httpx.HTTPTransport() if kind == "awaited" else httpx.AsyncHTTPTransport()
    with Twin(kind, transport=transport) as twin, pytest.raises(TypeError, match="transport"):
        twin.info()
