"""The only place where an error gets a status code. Answers are RFC 9457 problems and never echo the input."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.api.checkpoint_schemas import CHECKPOINT_ID_PATTERN
from service.api.error_dialects import QUOTA_IS_503, foreign_members
from service.api.evidence_schemas import EVIDENCE_ID_PATTERN
from service.api.feedback_schemas import EVENT_ID_PATTERN
from service.api.request_id import request_id_of
from service.api.schemas import Problem
from service.errors import (
    Conflict,
    EngineError,
    FieldIssue,
    Forbidden,
    InvalidInput,
    MetarewardError,
    NotFound,
    Overloaded,
    QuotaExceeded,
    TemporaryError,
    Unauthenticated,
)

logger = logging.getLogger(__name__)

PROBLEM_MEDIA_TYPE = "application/problem+json"
TITLES = {
    400: "Malformed request",
    401: "Not authenticated",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Too large",
    415: "Not JSON",
    421: "Wrong host",
    422: "Invalid input",
    429: "Quota exceeded",
    500: "Internal error",
    503: "Try again later",
}
MAX_LISTED = 100
# Where a request's scope holds the kind of the problem that it was answered with, for the log.
PROBLEM_KEY = "metareward.problem"


def problem_bytes(
    path: str, status: int, kind: str, detail: str, request_id: str, errors: Sequence[FieldIssue] = (), **more: str
) -> bytes:
    """The body of a problem at `path`. `kind` is the last part of its type, stable for programs to match."""
    listed = errors[:MAX_LISTED]
    body: dict[str, Any] = {
        "type": f"urn:metareward:problem:{kind}",
        "title": TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "request_id": request_id,
        "errors": [{"field": issue.field, "message": issue.message} for issue in listed],
        **more,
        **foreign_members(path, status, kind, detail, listed),
    }
    return orjson.dumps(body)


def problem(
    request: Request,
    status: int,
    kind: str,
    detail: str,
    errors: Sequence[FieldIssue] = (),
    retry_after_s: float = 0,
    **more: str,
) -> Response:
    """A problem response, with Retry-After in whole seconds where it is temporary; `more` are members of its body."""
    request.scope[PROBLEM_KEY] = kind
    headers = {"Retry-After": str(max(1, math.ceil(retry_after_s)))} if retry_after_s else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = problem_bytes(request.scope["path"], status, kind, detail, request_id_of(request.scope), errors, **more)
    return Response(content, status, headers, PROBLEM_MEDIA_TYPE)


def answer_to(request: Request, error: MetarewardError) -> Response | None:
    """The problem that an error of the project is for the caller; None where it is a fault of ours."""
    match error:
        case InvalidInput():
            return problem(request, 422, "invalid-input", _counted(len(error.issues)), error.issues)
        case NotFound():
            return problem(request, 404, "not-found", str(error))
        case Conflict():
            return problem(request, 409, "conflict", str(error), error.issues)
        case Unauthenticated():
            return problem(request, 401, "not-authenticated", str(error))
        case Forbidden():
            return problem(request, 403, "not-allowed", str(error))
        case QuotaExceeded():
            after_s = error.retry_after_s
            status = 503 if request.scope["path"] in QUOTA_IS_503 else 429
            return problem(request, status, "quota-exceeded", str(error), retry_after_s=after_s, quota=error.quota)
        case TemporaryError():
            kind = "overloaded" if isinstance(error, Overloaded) else "unavailable"
            return problem(request, 503, kind, str(error), retry_after_s=error.retry_after_s)
        case EngineError():
            logger.error("engine failed", exc_info=error)
            return problem(request, 500, "engine-error", str(error))
        case _:
            return None


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: problems it may answer with."""
    return {
        status: {
            "description": TITLES[status],
            "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}},
        }
        for status in statuses
    }


def install_error_handlers(app: FastAPI) -> None:
    """Map every error of the project, of validation and of routing to a problem; the gate answers for the rest."""

    @app.exception_handler(MetarewardError)
    async def _ours(request: Request, error: MetarewardError) -> Response:
        answer = answer_to(request, error)
        if answer is None:
            raise error
        return answer

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        errors = error.errors()
        issues = [FieldIssue(_path(e), _message(e)) for e in errors[:MAX_LISTED]]
        return problem(request, 422, "invalid-input", _counted(len(errors)), issues)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return problem(request, 404, "no-such-path", "No such path. The API is described at /docs.")
        if error.status_code == 405:
            return problem(request, 405, "method-not-allowed", "This path exists, but not with this method.")
        if error.status_code == 503:
            return problem(request, 503, "overloaded", str(error.detail), retry_after_s=1)
        kind = "too-large" if error.status_code == 413 else "malformed-request"
        return problem(request, error.status_code, kind, str(error.detail))


def _counted(issues: int) -> str:
    listed = f", the first {MAX_LISTED} are listed" if issues > MAX_LISTED else ""
    return f"{issues} problem{'s' if issues != 1 else ''} with the request{listed}; nothing was done."


# Where a union is told apart by a tag, validation puts the tag into the path of the error.
_TAGS = {"prompt-text", "prompt-messages", "score-one", "score-many", "document-text", "document-object"}
_TAGS |= {f"event-{kind}" for kind in ("chosen", "regenerated", "copied", "edited", "dwell", "thumbs")}
_MAX_PATH = 200


def _path(error: dict[str, Any]) -> str:
    path = ""
    # Where a body is no JSON, the location is a position in it, not a field.
    for part in () if error["type"] == "json_invalid" else error["loc"][1:]:  # behind `body` or `query`
        if part not in _TAGS:
            path += f"[{part}]" if isinstance(part, int) else f"{'.' if path else ''}{part}"
    return path[:_MAX_PATH] or "body"


_FIXES = {
    "extra_forbidden": "unknown field; remove it or check its spelling",
    "missing": "is missing; add it",
}
_PATTERNS = {
    CHECKPOINT_ID_PATTERN: "must be the 16 hexadecimal digits of a checkpoint_id, as GET /admin/checkpoints lists them",
    EVIDENCE_ID_PATTERN: "must be 1 to 128 printable ASCII characters without spaces",
    EVENT_ID_PATTERN: "must be 1 to 120 printable ASCII characters without spaces",
}


def _message(error: dict[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return (
            f"is not valid JSON in UTF-8, from character {error['loc'][-1]} on; "
            "a comma before a closing bracket, NaN and Infinity are not JSON"
        )
    if error["type"] == "too_short":
        given, least = error["ctx"]["actual_length"], error["ctx"]["min_length"]
        return f"is {'too short' if given else 'empty'}; give at least {'one' if least == 1 else least}"
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] in _PATTERNS:
        return _PATTERNS[error["ctx"]["pattern"]]
    if error["type"] in _FIXES:
        return _FIXES[error["type"]]
    message = str(error["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]
