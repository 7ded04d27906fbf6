"""The state machine of one call: when it is sent, when it waits and when it has failed."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest

from metareward_client import (
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    MetarewardError,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    Overloaded,
    QuotaExceeded,
    RequestError,
    ServerError,
    TooLarge,
    UnexpectedAnswer,
)
from metareward_client._attempts import FIRST_WAIT_S, LONGEST_WAIT_S, Attempts, Broken, Done, Send, Wait, error_of
from metareward_client._call import Answer, Call

READ: Call[bytes] = Call("GET", "/info", lambda body: body)
KEYED: Call[bytes] = Call("POST", "/users/ada/adapt", lambda body: body, idempotency_key="k1")
UNSAFE: Call[bytes] = Call("DELETE", "/users/ada", lambda body: body, repeatable=False)


def longest(low: float, high: float) -> float:
    return high


def attempts_of(
    call: Call[bytes], until: float = 60.0, max_retries: int | None = None, uniform: Any = longest
) -> Attempts[bytes]:
    return Attempts(call, until, max_retries=max_retries, uniform=uniform)


def answer(status: int, body: Any = None, **headers: str) -> Answer:
    return Answer(status, {"x-request-id": "r1", **headers}, b"" if body is None else json.dumps(body).encode())


def send(attempts: Attempts[bytes], now: float) -> Send:
    step = attempts.next(now)
    assert isinstance(step, Send)
    return step


def wait(attempts: Attempts[bytes], now: float) -> float:
    step = attempts.next(now)
    assert isinstance(step, Wait)
    return step.seconds


def test_an_answer_ends_the_call() -> None:
    attempts = attempts_of(READ)
    assert send(attempts, 0.0).seconds == 60.0
    attempts.answered(Answer(200, {}, b"yes"))
    assert attempts.next(1.0) == Done(b"yes")


def test_every_try_has_what_is_left_and_a_name_of_its_own() -> None:
    attempts = attempts_of(READ)
    first = send(attempts, 0.0)
    attempts.answered(answer(503, **{"retry-after": "7"}))
    wait(attempts, 2.0)
    second = send(attempts, 9.0)
    assert second.seconds == 51.0
    assert first.request_id != second.request_id
    assert first.request_id.rpartition("-")[0] == second.request_id.rpartition("-")[0], "one call, one name"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize("call", [READ, KEYED], ids=["read", "keyed"])
def test_what_is_temporary_is_repeated(call: Call[bytes], status: int) -> None:
    attempts = attempts_of(call)
    for _ in range(20):
        send(attempts, 0.0)
        attempts.answered(answer(status))
        wait(attempts, 0.0)
    send(attempts, 0.0)
    attempts.answered(Answer(200, {}, b"at last"))
    assert attempts.next(0.0) == Done(b"at last")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 422, 500, 501])
@pytest.mark.parametrize("call", [READ, KEYED, UNSAFE], ids=["read", "keyed", "unsafe"])
def test_what_fails_again_is_not_repeated(call: Call[bytes], status: int) -> None:
    attempts = attempts_of(call)
    send(attempts, 0.0)
    attempts.answered(answer(status))
    with pytest.raises(MetarewardError) as caught:
        attempts.next(0.0)
    assert (caught.value.status, caught.value.request_id) == (status, "r1")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_without_a_key_nothing_is_repeated_that_was_answered(status: int) -> None:
    attempts = attempts_of(UNSAFE)
    send(attempts, 0.0)
    attempts.answered(answer(status, **{"retry-after": "1"}))
    with pytest.raises(MetarewardError):
        attempts.next(0.0)


def test_without_a_key_only_what_was_never_sent_is_repeated() -> None:
    attempts = attempts_of(UNSAFE)
    send(attempts, 0.0)
    attempts.broke(Broken.NEVER_SENT, "refused")
    wait(attempts, 0.0)
    send(attempts, 0.1)
    attempts.broke(Broken.MAY_HAVE_ARRIVED, "reset.")
    with pytest.raises(ConnectionFailed, match="may have been made"):
        attempts.next(0.2)


@pytest.mark.parametrize("how", [Broken.NEVER_SENT, Broken.MAY_HAVE_ARRIVED])
@pytest.mark.parametrize("call", [READ, KEYED], ids=["read", "keyed"])
def test_what_is_safe_is_repeated_however_the_connection_broke(call: Call[bytes], how: Broken) -> None:
    attempts = attempts_of(call)
    send(attempts, 0.0)
    attempts.broke(how, "gone")
    wait(attempts, 0.0)
    send(attempts, 1.0)


@pytest.mark.parametrize("how", [Broken.OUT_OF_TIME, Broken.NO_CONNECTION_IN_TIME])
def test_a_try_that_took_all_the_time_is_the_last(how: Broken) -> None:
    attempts = attempts_of(KEYED)
    send(attempts, 0.0)
    attempts.answered(answer(503, **{"retry-after": "2"}))
    wait(attempts, 0.0)
    attempted = send(attempts, 2.0)
    attempts.broke(how, "")
    with pytest.raises(DeadlineExceeded) as caught:
        attempts.next(60.0)
    error = caught.value
    assert ("may have been made" in str(error)) is (how is Broken.OUT_OF_TIME)
    assert (error.retry_after_s, error.idempotency_key, error.request_id) == (2.0, "k1", attempted.request_id)
    assert isinstance(error.__cause__, Overloaded)
    assert isinstance(error, TimeoutError)


def test_nothing_is_sent_when_the_time_is_up() -> None:
    with pytest.raises(DeadlineExceeded, match="0 tries"):
        attempts_of(READ, until=1.0).next(1.0)


def test_retry_after_is_honoured_and_not_by_all_at_once() -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    attempts = attempts_of(READ, uniform=draw)
    send(attempts, 0.0)
    attempts.answered(answer(503, **{"retry-after": "10"}))
    assert wait(attempts, 0.0) == 11.0
    assert drawn == [(0.0, 1.0)]


@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_is_longer_than_the_time_left_fails_at_once(status: int) -> None:
    attempts = attempts_of(KEYED, until=5.0)
    send(attempts, 0.0)
    attempts.answered(answer(status, {"quota": "tokens"} if status == 429 else {}, **{"retry-after": "30"}))
    with pytest.raises((Overloaded, QuotaExceeded)) as caught:
        attempts.next(0.5)
    error = caught.value
    assert (error.retry_after_s, error.request_id, error.idempotency_key) == (30.0, "r1", "k1")


def test_retry_after_that_just_fits_is_waited_for() -> None:
    attempts = attempts_of(READ, until=5.0)
    send(attempts, 0.0)
    attempts.answered(answer(503, **{"retry-after": "4"}))
    seconds = wait(attempts, 0.0)
    assert 4.0 <= seconds < 5.0
    send(attempts, seconds)


def test_a_proxys_refusal_is_known_by_the_name_that_was_sent() -> None:
    attempts = attempts_of(UNSAFE)
    sent = send(attempts, 0.0)
    attempts.answered(Answer(502, {}, b"<html>"))
    with pytest.raises(Overloaded) as caught:
        attempts.next(0.0)
    assert caught.value.request_id == sent.request_id


def test_retry_after_may_be_a_date() -> None:
    at = datetime.now(timezone.utc) + timedelta(seconds=20)
    error = error_of(answer(503, **{"retry-after": format_datetime(at, usegmt=True)}))
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == pytest.approx(20.0, abs=2.0)


@pytest.mark.parametrize("value", ["soon", "-3", "1.5", "", "²"])
def test_a_retry_after_that_is_none_is_as_if_there_were_none(value: str) -> None:
    error = error_of(answer(503, **{"retry-after": value}))
    assert isinstance(error, Overloaded)
    assert error.retry_after_s is None


def test_waits_without_retry_after_double_up_to_a_bound_with_full_jitter() -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return low

    attempts = attempts_of(READ, uniform=draw)
    for _ in range(8):
        send(attempts, 0.0)
        attempts.broke(Broken.MAY_HAVE_ARRIVED, "reset")
        assert wait(attempts, 0.0) == 0.0
    assert {low for low, _ in drawn} == {0.0}
    highs = [high for _, high in drawn]
    assert highs[:5] == pytest.approx([FIRST_WAIT_S * 2**i for i in range(5)])
    assert highs[-2:] == [LONGEST_WAIT_S, LONGEST_WAIT_S]


def test_max_retries_bounds_the_tries() -> None:
    attempts = attempts_of(READ, max_retries=2)
    for _ in range(2):
        send(attempts, 0.0)
        attempts.answered(answer(503))
        wait(attempts, 0.0)
    send(attempts, 0.0)
    attempts.answered(answer(503))
    with pytest.raises(Overloaded):
        attempts.next(0.0)


@pytest.mark.parametrize(
    ("status", "found"),
    [
        (302, UnexpectedAnswer),
        (400, InvalidRequest),
        (401, NotAuthenticated),
        (403, NotAllowed),
        (404, NotFound),
        (409, Conflict),
        (413, TooLarge),
        (415, RequestError),
        (421, RequestError),
        (422, InvalidRequest),
        (429, QuotaExceeded),
        (500, ServerError),
        (502, Overloaded),
        (503, Overloaded),
        (504, Overloaded),
    ],
)
def test_each_status_has_its_error(status: int, found: type[MetarewardError]) -> None:
    assert type(error_of(answer(status))) is found


def test_an_error_tells_what_the_server_told() -> None:
    problem = {
        "type": "urn:metareward:problem:invalid-input",
        "detail": "1 problem with the request; nothing was done.",
        "request_id": "in-body",
        "errors": [{"field": "pairs[3].chosen", "message": "is empty; send the text that the user saw"}],
    }
    error = error_of(answer(422, problem))
    assert isinstance(error, InvalidRequest)
    assert isinstance(error, ValueError)
    assert error.kind == "invalid-input"
    assert error.errors == (("pairs[3].chosen", "is empty; send the text that the user saw"),)
    assert str(error) == (
        "1 problem with the request; nothing was done. pairs[3].chosen: is empty; send the text that the user saw "
        "(status 422, request in-body)"
    )


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"errors": 3, "detail": 4, "type": []}', b"\xff"])
def test_a_proxys_page_is_an_error_all_the_same(body: bytes) -> None:
    assert isinstance(error_of(Answer(502, {}, body)), Overloaded)
    assert isinstance(error_of(Answer(422, {}, body)), InvalidRequest)


def test_an_answer_that_cannot_be_read_is_not_asked_for_again() -> None:
    def parse(body: bytes) -> bytes:
        raise UnexpectedAnswer("no")

    attempts: Attempts[bytes] = Attempts(Call("GET", "/info", parse), 60.0, max_retries=None)
    send(attempts, 0.0)
    attempts.answered(answer(200))
    with pytest.raises(UnexpectedAnswer) as caught:
        attempts.next(0.0)
    assert (caught.value.status, caught.value.request_id) == (200, "r1")


def test_a_probe_that_says_no_with_503_is_answered_and_a_busy_proxy_is_not() -> None:
    def parse(body: bytes) -> bytes:
        if body != b"no":
            raise UnexpectedAnswer("not a probe")
        return body

    probe: Call[bytes] = Call("GET", "/ready", parse, answered=frozenset({200, 503}))
    attempts = Attempts(probe, 60.0, max_retries=None, uniform=longest)
    send(attempts, 0.0)
    attempts.answered(answer(503))
    wait(attempts, 0.0)
    send(attempts, 1.0)
    attempts.answered(Answer(503, {}, b"no"))
    assert attempts.next(1.0) == Done(b"no")
