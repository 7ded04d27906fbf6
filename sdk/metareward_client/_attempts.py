"""When a call is sent, when it waits and when it has failed: one state machine, without I/O or clock.

    Send ──── answer read ────────────────────────────► Done
     ▲  └─── refused (4xx), failed (500) ─────────────► its error
     │  └─── busy (429, 502, 503, 504), broken ──┬────► its error: unsafe to repeat, or no time left to wait
     └────────────────── Wait ◄──────────────────┘

The loops in `_sync` and `_async` do what `next` says and tell what came of it.
"""

from __future__ import annotations

import enum
import json
import logging
import random
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Generic, TypeVar

from metareward_client import errors
from metareward_client._call import Answer, Call
from metareward_client.errors import FieldError, MetarewardError, TemporaryError

T = TypeVar("T")

logger = logging.getLogger("metareward_client")

FIRST_WAIT_S = 0.1
"""Bound of the first wait without Retry-After; it doubles from one to the next."""

LONGEST_WAIT_S = 2.0
"""Bound of every wait without Retry-After."""

LEAST_S = 0.01
"""With less time left than this nothing is sent any more."""


class Broken(enum.Enum):
    """What became of a request that was not answered."""

    NEVER_SENT = "never sent"
    MAY_HAVE_ARRIVED = "may have arrived"
    NO_CONNECTION_IN_TIME = "all connections were in use until the time was up"
    OUT_OF_TIME = "out of time"


@dataclass(frozen=True)
class Send:
    """Send the request under the name `request_id`, and give up after `seconds`."""

    seconds: float
    request_id: str


@dataclass(frozen=True)
class Wait:
    """Do nothing for `seconds`."""

    seconds: float


@dataclass(frozen=True)
class Done(Generic[T]):
    """The call is answered."""

    value: T


class Attempts(Generic[T]):
    """The attempts of one call.

    Args:
        call: What is asked.
        until: When its time is up, on the clock that `next` is told.
        max_retries: Most times that it is sent again; None: as often as there is time.
        uniform: A random number between two.
    """

    def __init__(
        self,
        call: Call[T],
        until: float,
        *,
        max_retries: int | None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._call = call
        self._until = until
        self._max_retries = max_retries
        self._uniform = uniform
        # The server takes it over, so that a request without an answer is found in its log, too.
        self._id = secrets.token_hex(8)
        self._tries = 0
        self._error: MetarewardError | None = None
        self._done: Done[T] | None = None
        self._again = False
        self._waited = True

    def next(self, now: float) -> Send | Wait | Done[T]:
        """What to do at `now`.

        Raises:
            MetarewardError: The call has failed.
        """
        if self._done is not None:
            return self._done
        left = self._until - now
        if self._error is not None:
            if not self._again:
                raise self._error
            if not self._waited:
                self._waited = True
                return self._wait(self._error, left)
        if left < LEAST_S:
            raise self._error or self._out_of_time(sent=False)
        self._tries += 1
        return Send(left, self._request_id)

    def answered(self, answer: Answer) -> None:
        """The request was answered."""
        if answer.status in self._call.answered:
            try:
                self._done = Done(self._call.parse(answer.body))
            except errors.UnexpectedAnswer as error:
                # A probe's 503 may be a proxy's.
                self._failed(error if answer.status < 300 else error_of(answer), answer)
        else:
            self._failed(error_of(answer), answer)

    def broke(self, how: Broken, detail: str) -> None:
        """The request was not answered. `detail` says why, in words."""
        if how in (Broken.OUT_OF_TIME, Broken.NO_CONNECTION_IN_TIME):
            self._fail(self._out_of_time(sent=how is Broken.OUT_OF_TIME), again=False)
        else:
            maybe = self._maybe_done if how is Broken.MAY_HAVE_ARRIVED else ""
            tries = f" Tried {self._tries} times." if self._tries > 1 else ""
            error = errors.ConnectionFailed(f"{detail}{tries}{maybe}", request_id=self._request_id)
            self._fail(error, again=self._call.repeatable or how is Broken.NEVER_SENT)

    @property
    def _request_id(self) -> str:
        return f"{self._id}-{self._tries}"

    @property
    def _maybe_done(self) -> str:
        if self._call.method == "GET" or (self._call.repeatable and self._call.idempotency_key is None):
            return ""
        return " The change may have been made."

    def _failed(self, error: MetarewardError, answer: Answer) -> None:
        if isinstance(error, errors.RequestError) and self._call.field_of is not None:
            error.errors = tuple(FieldError(self._call.field_of(field), message) for field, message in error.errors)
        error.status = answer.status
        # A proxy's answer has none; what was sent may be in the server's log all the same.
        error.request_id = answer.headers.get("x-request-id") or error.request_id or self._request_id
        self._fail(error, again=isinstance(error, TemporaryError) and self._call.repeatable)

    def _fail(self, error: MetarewardError, *, again: bool) -> None:
        error.idempotency_key = self._call.idempotency_key
        self._error = error
        self._again = again and (self._max_retries is None or self._tries <= self._max_retries)
        self._waited = False

    def _wait(self, error: MetarewardError, left: float) -> Wait:
        asked = error.retry_after_s if isinstance(error, TemporaryError) else None
        if asked is None:
            # Full jitter: clients that failed together do not come back together.
            bound = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self._tries - 1, 10))
            seconds = self._uniform(0.0, min(bound, max(left, 0.0)))
        else:
            # A little later than asked, and not all at once.
            seconds = asked + self._uniform(0.0, min(0.1 * asked, LONGEST_WAIT_S, max(left - asked - LEAST_S, 0.0)))
        if left - seconds < LEAST_S:
            raise error
        logger.debug("%s %s: %s; try %d in %.3f s", self._call.method, self._call.path, error, self._tries + 1, seconds)
        return Wait(seconds)

    def _out_of_time(self, *, sent: bool) -> errors.DeadlineExceeded:
        detail = f"No answer in time, after {self._tries} tr{'y' if self._tries == 1 else 'ies'}."
        error = errors.DeadlineExceeded(f"{detail}{self._maybe_done if sent else ''}")
        if self._tries:
            error.request_id = self._request_id
        if isinstance(self._error, TemporaryError):
            error.__cause__ = self._error
            error.retry_after_s = self._error.retry_after_s
        error.idempotency_key = self._call.idempotency_key
        return error


_CLASSES: Mapping[int, type[MetarewardError]] = {
    400: errors.InvalidRequest,
    401: errors.NotAuthenticated,
    403: errors.NotAllowed,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.TooLarge,
    422: errors.InvalidRequest,
    429: errors.QuotaExceeded,
    502: errors.Overloaded,
    503: errors.Overloaded,
    504: errors.Overloaded,
}


def error_of(answer: Answer) -> MetarewardError:
    """The error that an answer other than the wanted one is."""
    problem = _problem(answer.body)
    detail = problem.get("detail")
    if not isinstance(detail, str):
        detail = f"The server answered {answer.status}."
    kind = problem.get("type")
    common: dict[str, Any] = {
        "status": answer.status,
        "kind": kind.rpartition(":")[2] if isinstance(kind, str) else None,
        "request_id": problem.get("request_id"),
    }
    found = _CLASSES.get(answer.status)
    if found is None:
        if answer.status < 400:
            return errors.UnexpectedAnswer(f"The server answered {answer.status}; check base_url.", **common)
        found = errors.RequestError if answer.status < 500 else errors.ServerError
    if issubclass(found, errors.RequestError):
        return found(detail, errors=_field_errors(problem), **common)
    if issubclass(found, TemporaryError):
        error = found(detail, retry_after_s=_retry_after_s(answer.headers.get("retry-after")), **common)
        if isinstance(error, errors.QuotaExceeded):
            error.quota = problem.get("quota")
        return error
    return found(detail, **common)


def _problem(body: bytes) -> dict[str, Any]:
    """An RFC 9457 problem; empty where the body is something else, a proxy's page, say."""
    try:
        problem = json.loads(body)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _field_errors(problem: Mapping[str, Any]) -> list[FieldError]:
    listed = problem.get("errors")
    return [
        FieldError(str(each.get("field", "")), str(each.get("message", "")))
        for each in (listed if isinstance(listed, list) else [])
        if isinstance(each, dict)
    ]


def _retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which may be a number or a date; None where it is neither."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    from email.utils import parsedate_to_datetime  # 15 ms, for a rare form

    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=timezone.utc)
    return max(0.0, (at - datetime.now(timezone.utc)).total_seconds())
