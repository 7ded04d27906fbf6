"""Errors that carry meaning: what to do next is told by the class.

    MetarewardError
    ├── RequestError             the server refuses this request: it fails again if it is sent again as it is
    │   ├── InvalidRequest       422, 400: a field is wrong; `errors` names each and how to mend it
    │   ├── NotAuthenticated     401: no key, or none that the server knows
    │   ├── NotAllowed           403: the role of the key does not reach this far
    │   ├── NotFound             404: no such user, version or path
    │   ├── Conflict             409: the request contradicts what is stored
    │   └── TooLarge             413: more bytes than the server takes
    ├── TemporaryError           nothing is wrong with the request: the same may succeed later
    │   ├── Overloaded           503, 502, 504: busy, draining, or a dependency is away
    │   ├── QuotaExceeded        429: the tenant has used up what it may
    │   ├── ConnectionFailed     no connection, or it broke
    │   └── DeadlineExceeded     no answer within the time that the call was given
    └── ServerError              500: the server failed on this request
        └── UnexpectedAnswer     the answer is none of this API's, or holds a number that is not finite

Temporary ones have been repeated already, until the call's time was up, where repeating was safe.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class FieldError(NamedTuple):
    """One thing wrong with a request.

    Attributes:
        field: Where, as a path into the request: ``pairs[3].chosen``.
        message: What is wrong and how to mend it.
    """

    field: str
    message: str


class MetarewardError(Exception):
    """The root of all errors of this package; picklable.

    Attributes:
        detail: What happened, in words.
        status: HTTP status of the answer; None where there was none.
        kind: The server's stable name of the problem (``overloaded``, ``invalid-input``), where it gave one.
        request_id: Names the request in the server's log; None where no answer came.
        idempotency_key: Of a change of a user: the key that it was sent with. Whatever became of the change, repeating
            the same call with this key applies it once.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        kind: str | None = None,
        request_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.kind = kind
        self.request_id = request_id
        self.idempotency_key = idempotency_key

    def _about(self) -> str:
        return self.detail

    def __str__(self) -> str:
        parts = [] if self.status is None else [f"status {self.status}"]
        if self.request_id is not None:
            parts.append(f"request {self.request_id}")
        return f"{self._about()} ({', '.join(parts)})" if parts else self._about()


class RequestError(MetarewardError):
    """The server refuses this request: it fails again if it is sent again as it is.

    Attributes:
        errors: Every field that is wrong, with how to mend it; empty where it is not about fields.
    """

    def __init__(
        self,
        detail: str,
        *,
        errors: Iterable[FieldError] = (),
        status: int | None = None,
        kind: str | None = None,
        request_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        super().__init__(detail, status=status, kind=kind, request_id=request_id, idempotency_key=idempotency_key)
        self.errors = tuple(errors)

    def _about(self) -> str:
        # Of a conflict the server says the same twice.
        news = [f"{field}: {message}" for field, message in self.errors if message not in self.detail]
        return " ".join([self.detail, "; ".join([*news[:5], "..."][: len(news)])]).rstrip()


class InvalidRequest(RequestError, ValueError):
    """A field of the request is wrong; refused by the server, or before anything was sent (`status` is None then)."""


class NotAuthenticated(RequestError):
    """No API key came with the request, or none that the server knows."""


class NotAllowed(RequestError):
    """The role of the API key does not reach this far."""


class NotFound(RequestError):
    """The named user, version or path does not exist."""


class Conflict(RequestError):
    """The request contradicts what is stored: a version that is not there yet, or not kept any more."""


class TooLarge(RequestError):
    """The request has more bytes than the server takes: split it."""


class TemporaryError(MetarewardError):
    """Nothing is wrong with the request: the same may succeed later.

    Attributes:
        retry_after_s: When, in seconds, where the server said so.
    """

    def __init__(
        self,
        detail: str,
        *,
        retry_after_s: float | None = None,
        status: int | None = None,
        kind: str | None = None,
        request_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        super().__init__(detail, status=status, kind=kind, request_id=request_id, idempotency_key=idempotency_key)
        self.retry_after_s = retry_after_s


class Overloaded(TemporaryError):
    """The server, or a proxy before it, cannot answer now: busy, draining, or a dependency is away."""


class QuotaExceeded(TemporaryError):
    """The tenant has used up what it may.

    Attributes:
        quota: What is used up: ``requests``, ``tokens`` or ``users``.
    """

    quota: str | None = None


class ConnectionFailed(TemporaryError):
    """There is no connection to the server, or it broke before the answer came."""


class DeadlineExceeded(TemporaryError, TimeoutError):
    """No answer came within the time that the call was given."""


class ServerError(MetarewardError):
    """The server failed on this request; its log tells more under `request_id`."""


class UnexpectedAnswer(ServerError):
    """The answer is none of this API's, or holds a number that is not finite."""
