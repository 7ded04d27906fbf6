"""One line a request, where the operator asked for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final, Literal

AccessLogMode = Literal["all", "errors", "off"]

# Requests that took longer get a line among the errors.
SLOW_S: Final = 1.0

logger = logging.getLogger("service.access")


class AccessLog:
    """Writes method, route, status, time and sizes; never a path, because paths hold user ids.

    A request that failed is a warning, any other line is information.
    """

    def __init__(self, mode: AccessLogMode) -> None:
        # What is not logged costs one comparison.
        self._from_status = {"all": 0, "errors": 400, "off": 1000}[mode]
        self._from_s = {"all": 0.0, "errors": SLOW_S, "off": float("inf")}[mode]

    def note(
        self,
        method: str,
        route: str,
        status: int,
        seconds: float,
        *,
        bytes_in: int,
        bytes_out: int,
        stages: Mapping[str, float],
    ) -> None:
        """Log one answered request, if it is one of those.

        Args:
            method: GET, POST, ...
            route: The template that matched, such as ``/users/{user_id}``.
            status: What was answered; 499 where the client had left.
            seconds: From the first byte to the answer.
            bytes_in: Of the body.
            bytes_out: Of the answer's body.
            stages: Seconds by stage, as far as it came.
        """
        if status < self._from_status and seconds < self._from_s:
            return
        logger.log(
            logging.WARNING if status >= 500 else logging.INFO,
            "%s %s %d",
            method,
            route,
            status,
            extra={
                "method": method,
                "route": route,
                "status": status,
                "ms": round(seconds * 1e3, 2),
                "bytes_in": bytes_in,
                "bytes_out": bytes_out,
                "stages_ms": {name: round(stage_s * 1e3, 2) for name, stage_s in stages.items()},
            },
        )
