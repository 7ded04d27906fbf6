"""Errors that carry meaning and no HTTP.

    MetarewardError
    ├── InvalidInput           the caller's data is wrong: every bad field, and how to mend it
    ├── NotFound               the named thing does not exist
    ├── Conflict               the request contradicts what is stored
    ├── Unauthenticated        no valid API key came with the request
    ├── Forbidden              the key's role does not reach this far
    ├── TemporaryError         nothing is wrong with the request: try again after `retry_after_s`
    │   ├── Overloaded         a queue is full
    │   ├── QuotaExceeded      the tenant has used up what it may
    │   └── Unavailable        a dependency does not answer
    ├── ConfigurationError     a setting, or two that do not fit each other
    │   ├── CheckpointError    a checkpoint that cannot be read or does not fit
    │   └── BackboneError      a backbone that cannot be loaded or does not fit
    └── EngineError            the device failed on this work

`service/api/errors.py` is the only place that gives them a status code.
To add one: derive from the nearest meaning, keep the constructor picklable (pass all arguments to `super`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldIssue:
    """One thing wrong with the caller's data.

    Attributes:
        field: Where, as a path into the request: ``pairs[3].chosen``.
        message: What is wrong and how to mend it, without echoing the caller's text.
    """

    field: str
    message: str


class MetarewardError(Exception):
    """The root of every error that this project raises on purpose."""


class InvalidInput(MetarewardError):
    """The caller's data is wrong. `issues` lists every bad field, never only the first."""

    def __init__(self, issues: Sequence[FieldIssue]) -> None:
        super().__init__(issues)
        self.issues = tuple(issues)

    def __str__(self) -> str:
        return "; ".join(f"{issue.field}: {issue.message}" for issue in self.issues)

    @classmethod
    def single(cls, field: str, message: str) -> InvalidInput:
        """An `InvalidInput` with one issue."""
        return cls([FieldIssue(field, message)])


class NotFound(MetarewardError):
    """The named thing does not exist."""


class Conflict(MetarewardError):
    """The request contradicts what is stored; `issues` names the fields that do, where there are several."""

    def __init__(self, message: str, issues: Sequence[FieldIssue] = ()) -> None:
        super().__init__(message, issues)
        self.message = message
        self.issues = tuple(issues)

    def __str__(self) -> str:
        return self.message


class Unauthenticated(MetarewardError):
    """No valid API key came with the request."""


class Forbidden(MetarewardError):
    """The caller is known, and the role of the key does not reach this far."""


class TemporaryError(MetarewardError):
    """Nothing is wrong with the request; the same request may succeed after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class Overloaded(TemporaryError):
    """A bounded queue is full; refused before any work was done."""


class QuotaExceeded(TemporaryError):
    """The tenant has used up a quota of its own; `quota` names it: requests, tokens, users."""

    def __init__(self, quota: str, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.args = (quota, message, retry_after_s)  # what pickle calls the constructor with
        self.quota = quota


class Unavailable(TemporaryError):
    """A dependency (database, engine) does not answer."""


class ConfigurationError(MetarewardError):
    """A setting is impossible, or two do not fit each other."""


class CheckpointError(ConfigurationError):
    """A checkpoint cannot be read, was altered, or does not fit its backbone."""


class BackboneError(ConfigurationError):
    """A backbone cannot be loaded or lacks what reward scoring needs."""


class EngineError(MetarewardError):
    """The device failed on this work (not on its neighbours)."""
