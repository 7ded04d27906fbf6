"""One line a request, where the operator asked for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal

AccessLogMode = Literal["all", "errors", "off"]

# Requests that took longer get a line among the errors.
SLOW_S: Final = 1.0
# An overloaded server refuses thousands of requests a second, and must not drown its log, or itself, in them.
MOST_ERRORS_A_SECOND: Final = 50

logger = logging.getLogger("service.access")


class AccessLog:
    """Writes method, route, status, time and sizes; never a path, because paths hold user ids.

    A request that failed is a warning, any other line is information. Of errors at most `MOST_ERRORS_A_SECOND` get a
    line, and the next second says how many did not.
    """

    def __init__(self, mode: AccessLogMode, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second, self._lines, self._left_out = 0, 0, 0
        self._bounded = mode == "errors"
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
        problem: str = "",
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
            problem: The kind of problem that it was answered with; empty for none.
        """
        if status < self._from_status and seconds < self._from_s:
            return
        if self._bounded and not self._has_room():
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
                **({"problem": problem} if problem else {}),
                "stages_ms": {name: round(stage_s * 1e3, 2) for name, stage_s in stages.items()},
            },
        )

    def _has_room(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            if self._left_out:
                logger.warning("%d more requests were refused, failed or slow", self._left_out)
            self._second, self._lines, self._left_out = second, 0, 0
        if self._lines >= MOST_ERRORS_A_SECOND:
            self._left_out += 1
            return False
        self._lines += 1
        return True
