"""A thread that is started again when it dies, a few times."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_log = logging.getLogger(__name__)

_MAX_RESTARTS: Final = 5
_WINDOW_S: Final = 60.0
_FIRST_BACKOFF_S: Final = 0.1
_MOST_DOUBLINGS: Final = 6


class RestartPolicy:
    """Ever longer pauses, and an end where it dies too often: pure policy, without a clock."""

    def __init__(
        self,
        max_restarts: int = _MAX_RESTARTS,
        window_s: float = _WINDOW_S,
        first_backoff_s: float = _FIRST_BACKOFF_S,
    ) -> None:
        """At most `max_restarts` in any `window_s`; the first waits `first_backoff_s`, each further one twice that."""
        self._max_restarts = max_restarts
        self._window_s = window_s
        self._first_backoff_s = first_backoff_s
        self._deaths: deque[float] = deque()

    def delay_s(self, now: float) -> float | None:
        """It died at `now`: how long to wait before it is started again; None: leave it."""
        while self._deaths and self._deaths[0] <= now - self._window_s:
            self._deaths.popleft()
        self._deaths.append(now)
        restarts = len(self._deaths)
        return (
            None if restarts > self._max_restarts else self._first_backoff_s * 2.0 ** min(restarts - 1, _MOST_DOUBLINGS)
        )


class SupervisedThread:
    """Runs a function in a thread, and in a fresh one when it died of an exception."""

    def __init__(
        self,
        run: Callable[[], None],
        *,
        name: str,
        policy: RestartPolicy,
        died: Callable[[], None],
        restarted: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        """Nothing runs before `start`.

        Args:
            run: Returns when there is nothing to do any more; whatever it raises is its death.
            name: Of the thread, for debuggers.
            policy: When it is started again.
            died: Called in the thread that died, as its last act.
            restarted: Called before each further start.
            ended: Called once, when `run` has returned or died for good.
        """
        self._run = run
        self._name = name
        self._policy = policy
        self._died = died
        self._restarted = restarted
        self._ended = ended
        self._finished = False
        self._leave = threading.Event()
        self._thread: threading.Thread | None = None
        self._supervisor = threading.Thread(target=self._supervise, name=f"{name}-supervisor", daemon=True)

    @property
    def runs(self) -> bool:
        """Whether the thread is alive just now."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    @property
    def supervised(self) -> bool:
        """Whether it runs or will run again."""
        return self._supervisor.is_alive()

    def start(self) -> None:
        """Start it."""
        self._thread = self._new()
        self._thread.start()
        self._supervisor.start()

    def leave(self) -> None:
        """Do not start it again."""
        self._leave.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for its end, `timeout_s` at most; whether it has come."""
        if self._supervisor.is_alive():
            self._supervisor.join(timeout_s)
        return not self._supervisor.is_alive()

    def _new(self) -> threading.Thread:
        return threading.Thread(target=self._guarded, name=self._name, daemon=True)

    def _guarded(self) -> None:
        try:
            self._run()
            self._finished = True
        except BaseException:
            _log.critical("thread %s dies", self._name, exc_info=True)
            self._died()

    def _supervise(self) -> None:
        try:
            while self._thread is not None:
                self._thread.join()
                if self._finished or self._leave.is_set():
                    return
                delay_s = self._policy.delay_s(time.monotonic())
                if delay_s is None:
                    _log.critical("thread %s died too often; it stays down", self._name)
                    return
                if self._leave.wait(delay_s):
                    return
                self._restarted()
                self._thread = self._new()
                self._thread.start()
                _log.warning("thread %s runs again", self._name)
        finally:
            self._ended()
