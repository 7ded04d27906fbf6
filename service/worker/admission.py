"""Which requests are refused because they would wait too long: pure policy, no threads, no I/O.

A bound in tokens alone fits one device only: what a GPU does in a second takes a CPU minutes. So the wait is estimated
from the speed that was measured, and the bound in tokens stays for memory, and for a device whose speed nobody knows.
"""

from __future__ import annotations

from typing import Final

from service.errors import Overloaded

# Half of a speed's weight is of the last so many seconds of work: long against one batch, short against a change of
# load from short texts to long ones.
_HALF_LIFE_S: Final = 5.0
# Of less work than this, and less than half a batch, much is overhead that more work would share.
TELLING_S: Final = 0.2
_SHORTEST_RETRY_AFTER_S: Final = 1.0
_LONGEST_RETRY_AFTER_S: Final = 60.0


class Speed:
    """Tokens a busy second of a device with enough to do, recent seconds counting more. The caller locks.

    A few texts take as long as many, so what they tell is the least that the device can do: it raises the speed and
    lowers nothing. Otherwise light traffic would have the first burst after it refused.
    """

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """None before anything was measured."""
        return self._tokens / self._seconds if self._tokens > 0 and self._seconds > 0 else None

    def note(self, tokens: int, seconds: float, *, full: bool = False) -> None:
        """`tokens` took `seconds` of work; `full` where that was half a batch or more."""
        if not full and seconds < TELLING_S:
            known = self.tokens_per_s
            if known is None or tokens > known * seconds:
                self._tokens, self._seconds = tokens, seconds
            return
        kept = 0.5 ** (seconds / _HALF_LIFE_S)
        self._tokens = self._tokens * kept + tokens
        self._seconds = self._seconds * kept + seconds


class Admission:
    """Two bounds on what may wait: tokens, and the time that they would take."""

    def __init__(self, max_queue_tokens: int, max_queue_wait_s: float) -> None:
        self._max_queue_tokens = max_queue_tokens
        self._max_queue_wait_s = max_queue_wait_s

    def refusal(self, tokens: int, *, waiting: int, ahead: int, speed: float | None) -> Overloaded | None:
        """Why a request of `tokens` is refused; None: it is admitted.

        An empty queue admits a request of any size: a bound that it could never meet would refuse it for ever with an
        error that says to try again. The message tells no numbers, because what waits is other callers' business.

        Args:
            tokens: What the request costs, or a lower bound of that.
            waiting: Tokens in the queue.
            ahead: Those, and the ones on the device.
            speed: Tokens a second; None where it is not known yet.
        """
        if not waiting:
            return None
        too_many = waiting + tokens - self._max_queue_tokens
        too_long_s = ahead / speed - self._max_queue_wait_s if speed else 0.0
        if too_many <= 0 and too_long_s <= 0:
            return None
        until_room_s = max(too_long_s, min(too_many, waiting) / speed if speed else 0.0)
        retry_after_s = min(_LONGEST_RETRY_AFTER_S, max(_SHORTEST_RETRY_AFTER_S, until_room_s))
        return Overloaded("the engine has as much work as it may take on; try again later", retry_after_s)
