"""How long an idle device waits for company: pure policy, no threads, no clock.

While the device is busy, texts gather by themselves. A window helps where it is not: callers that ask together arrive a
little apart, and the first one's text would go alone, the others a whole batch later. It helps nobody who is alone. So
it opens only while batches of several jobs leave room, and closes as soon as nobody comes.
"""

from __future__ import annotations

from typing import Final

_FIRST_S: Final = 0.0005
_GROWTH: Final = 1.5
# So many batches in a row that several jobs shared, and that were half empty, open it.
_EVIDENCE: Final = 3
# A batch with less room than this gains little by waiting.
_ROOMY: Final = 0.5


class CoalescingWindow:
    """What was learned of recent batches. The caller locks."""

    def __init__(self, max_s: float) -> None:
        """`max_s` is the longest it may become; 0 turns it off."""
        self._max_s = max_s
        self._window_s = 0.0
        self._evidence = 0
        self._company = 0

    @property
    def seconds(self) -> float:
        """How long the oldest text may wait for others where the device is idle."""
        return self._window_s

    @property
    def jobs(self) -> int:
        """With so many jobs waiting nobody else is expected: as many as came together lately."""
        return max(2, self._company)

    def note(self, *, jobs: int, fill: float, waited: bool, came: int = 0) -> None:
        """A batch was formed.

        Args:
            jobs: Calls of `submit` that its texts are from.
            fill: Its computed tokens as a share of what a batch may have.
            waited: Whether it was held back.
            came: Jobs that came meanwhile.
        """
        self._company = max(jobs, self._company - 1)
        if not self._max_s:
            return
        roomy = fill <= _ROOMY
        if waited and not came:
            # Alone a second time, or even a third: whoever comes one by one soon waits for nobody.
            self._window_s /= 4.0
            self._company = jobs
            if self._window_s < _FIRST_S:
                self._window_s, self._evidence = 0.0, 0
        elif jobs > 1 and roomy:
            self._evidence = min(_EVIDENCE, self._evidence + 1)
            if self._evidence == _EVIDENCE:
                self._window_s = min(self._max_s, max(_FIRST_S, self._window_s * _GROWTH))
        elif not roomy:
            self._window_s /= _GROWTH  # full batches need no window
        elif not waited:
            self._evidence = max(0, self._evidence - 1)
