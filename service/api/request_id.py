"""One id per request, in every answer and error, so that a client's report finds its log line."""

from __future__ import annotations

import re
import secrets
from collections.abc import MutableMapping
from typing import Any

HEADER = b"x-request-id"
# A caller's own id is taken over where it is harmless in a log and a header.
_ACCEPTABLE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_STATE_KEY = "metareward.request_id"


def assign_request_id(scope: MutableMapping[str, Any]) -> str:
    """The caller's X-Request-ID where acceptable, else a new one; remembered in the scope."""
    for name, value in scope["headers"]:
        if name == HEADER and _ACCEPTABLE.fullmatch(value):
            request_id = str(value.decode())
            break
    else:
        request_id = secrets.token_hex(8)
    scope[_STATE_KEY] = request_id
    return request_id


def request_id_of(scope: Any) -> str:
    """The id that `assign_request_id` gave this request."""
    return str(scope.get(_STATE_KEY, "none"))
