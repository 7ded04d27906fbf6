"""When to leave a dependency alone that does not answer, and when to try it again. No clock, no I/O."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

CircuitState = Literal["closed", "open", "half_open"]


class CircuitBreaker:
    """Closed, calls pass. The first failure opens it: calls are refused at once, until one trial succeeds.

    Between trials it pauses, each time twice as long up to a bound, less a random part, so that the replicas that
    lost one dependency together do not come back together. Times are readings of one monotonic clock, in seconds.

    One failure is enough, so that few callers wait for a time limit. The first pause is short: a failure that meant
    nothing (a process that was busy for a moment) shall cost little of what the dependency saves.
    """

    __slots__ = ("_first_pause_s", "_max_pause_s", "_next_pause_s", "_random", "_state", "_try_at")

    def __init__(
        self,
        *,
        first_pause_s: float = 0.02,
        max_pause_s: float = 5.0,
        random_part: Callable[[], float] = random.random,
    ) -> None:
        """A closed circuit.

        Args:
            first_pause_s: Pause after the failure that opens it, at most.
            max_pause_s: Longest pause.
            random_part: Gives a number in [0, 1); half of each pause is multiplied by it.
        """
        if not 0 < first_pause_s <= max_pause_s:
            raise ValueError("first_pause_s must be positive and at most max_pause_s")
        self._first_pause_s = first_pause_s
        self._max_pause_s = max_pause_s
        self._random = random_part
        self._state: CircuitState = "closed"
        self._next_pause_s = first_pause_s
        self._try_at = 0.0

    @property
    def state(self) -> CircuitState:
        """`closed`: in use; `open`: left alone; `half_open`: one trial is under way."""
        return self._state

    @property
    def closed(self) -> bool:
        """Whether calls pass."""
        return self._state == "closed"

    @property
    def try_at(self) -> float:
        """When an open circuit wants its next trial."""
        return self._try_at

    def fail(self, now: float) -> bool:
        """A call failed. True if that opened the circuit.

        Calls that were under way when another one opened it fail late; they change nothing.
        """
        if self._state != "closed":
            return False
        self._pause(now)
        return True

    def begin_trial(self, now: float) -> bool:
        """Whether the caller may make the one trial now. If so, it must call `end_trial`."""
        if self._state != "open" or now < self._try_at:
            return False
        self._state = "half_open"
        return True

    def end_trial(self, now: float, *, succeeded: bool) -> None:
        """The trial is over: close, or pause for longer."""
        if self._state != "half_open":
            raise ValueError("no trial is under way")
        if succeeded:
            self._state = "closed"
            self._next_pause_s = self._first_pause_s
        else:
            self._pause(now)

    def _pause(self, now: float) -> None:
        self._state = "open"
        self._try_at = now + self._next_pause_s * (0.5 + 0.5 * self._random())
        self._next_pause_s = min(2 * self._next_pause_s, self._max_pause_s)
