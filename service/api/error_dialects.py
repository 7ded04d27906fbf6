"""What errors say besides the problem, where the clients of a path look for the words of another server.

An RFC 9457 problem may have further members, so one body serves both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from service.errors import FieldIssue

VLLM_PATHS: Final = frozenset({"/classify", "/v1/models"})
COHERE_PATHS: Final = frozenset({"/v1/rerank", "/v2/rerank"})
# verl ends a run at any 4xx and waits after a 5xx; OpenRLHF tries five times whatever it gets. To neither of them may
# a quota that is full again within the minute look like a mistake of theirs.
QUOTA_IS_503: Final = frozenset({"/classify", "/v1/openrlhf/get_reward"})

ERROR_TYPES: Final = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    421: "MisdirectedRequestError",
    422: "BadRequestError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
    504: "TimeoutError",
}
OVERLOADED: Final = "OverloadedError"


def foreign_members(path: str, status: int, kind: str, detail: str, errors: Sequence[FieldIssue]) -> dict[str, Any]:
    """Further members of a problem that is answered at `path`: vLLM's `error`, Cohere's `message`, or none."""
    if path not in VLLM_PATHS and path not in COHERE_PATHS:
        return {}
    message = "; ".join(f"{issue.field}: {issue.message}" for issue in errors) or detail
    if path in COHERE_PATHS:
        return {"message": message}
    param = errors[0].field if errors else "model" if kind == "not-found" else None
    error_type = OVERLOADED if kind == "overloaded" else ERROR_TYPES.get(status, "Error")
    return {"error": {"message": message, "type": error_type, "param": param, "code": status}}
