"""How long a device that could begin waits for company: pure policy, no threads, no clock.

Callers that ask again as soon as they are answered arrive a little apart: those of one batch come back when the others'
texts have just been taken, so that two half batches take turns where one whole would do. A window joins them. It helps
nobody who is alone, and nobody whose batches are full anyway. So it opens only while batches of several jobs leave
room, and closes as soon as it costs those who are there more time than it saves those who come.
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
        self._expected = 0

    @property
    def seconds(self) -> float:
        """How long a device that could begin waits for others."""
        return self._window_s

    @property
    def enough_jobs(self) -> int:
        """With so many jobs that wait, nobody else is expected."""
        return max(2, self._expected)

    def expect(self, jobs: int) -> None:
        """A batch has been answered: so many jobs were in it, or waited meanwhile. The next time it may be as many."""
        self._expected = jobs

    def note(self, *, jobs: int, fill: float, waited_s: float = 0.0, came: int = 0, batch_s: float = 0.0) -> None:
        """A batch was formed.

        Args:
            jobs: Calls of `submit` that its texts are from.
            fill: Its computed tokens as a share of what a batch may have.
            waited_s: How long it was held back.
            came: Jobs that came meanwhile.
            batch_s: What the batch before took: the time that who came would have waited otherwise.
        """
        if not self._max_s:
            return
        roomy = fill <= _ROOMY
        if waited_s and not came:
            # Whoever comes one by one soon waits for nobody.
            self._window_s = 0.0 if self._window_s < 4.0 * _FIRST_S else self._window_s / 4.0
            self._evidence = 0
        elif not roomy or (waited_s and came * batch_s < max(1, jobs - came) * waited_s):
            self._window_s /= _GROWTH
        elif jobs > 1:
            self._evidence = min(_EVIDENCE, self._evidence + 1)
            if self._evidence == _EVIDENCE:
                self._window_s = min(self._max_s, max(_FIRST_S, self._window_s * _GROWTH))
        else:
            self._evidence = max(0, self._evidence - 1)
