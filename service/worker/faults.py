"""Which text of a batch is to blame, in few attempts: pure policy, no device.

A batch that fails is halved until the texts that fail alone are found. One of n costs at most 2 log2 n attempts more,
and where the first half is innocent the second one is not tried again as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

# After so many failures and not one success the device itself is asked, instead of every text twice.
_SUSPICIOUS_FAILURES: Final = 3
_MEMORY_ERRORS: Final = frozenset({"OutOfMemoryError", "MemoryError"})
_MEMORY_MESSAGES: Final = ("not enough memory", "out of memory", "can't allocate memory", "cannot allocate memory")

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Failure:
    """What became of an attempt. It keeps no exception: a traceback keeps the tensors of its frames on the device.

    Attributes:
        reason: The error's type.
        out_of_memory: Whether fewer texts may fit.
    """

    reason: str
    out_of_memory: bool

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """What an exception says."""
        return cls(type(error).__name__, is_out_of_memory(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left, told without importing torch.

    CUDA raises `torch.OutOfMemoryError`; the allocators of CPUs a plain RuntimeError.
    """
    if any(kind.__name__ in _MEMORY_ERRORS for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY_MESSAGES)


def isolate(
    items: Sequence[Item],
    failure: Failure,
    attempt: Callable[[Sequence[Item]], Sequence[Answer] | Failure],
    hopeless: Callable[[], bool],
) -> list[Answer | Failure]:
    """An answer for each of `items`, which failed together with `failure`; a text that fails alone gets its failure.

    Args:
        items: At least one.
        failure: Of the attempt with all of them.
        attempt: Answers in order, or why there are none.
        hopeless: Asked once, where many attempts failed and none succeeded: whether the device fails on everything.
            The remaining items then fail without another attempt.
    """
    answers: list[Answer | Failure] = [failure] * len(items)
    # Groups that are known to fail as a whole, the next one last.
    suspects = [(0, len(items), failure)]
    failures, succeeded, asked = 1, False, False

    def tried(start: int, stop: int) -> Failure | None:
        nonlocal failures, succeeded
        outcome = attempt(items[start:stop])
        if isinstance(outcome, Failure):
            failures += 1
            return outcome
        succeeded = True
        answers[start:stop] = outcome
        return None

    while suspects:
        start, stop, failure = suspects.pop()
        if not succeeded and not asked and failures >= _SUSPICIOUS_FAILURES and not failure.out_of_memory:
            asked = True
            if hopeless():
                break
        if stop - start == 1:
            # Its failure was only inferred, or is one of memory that has been released since.
            if (len(items) > 1 or failure.out_of_memory) and (last := tried(start, stop)) is not None:
                answers[start] = last
            continue
        middle = (start + stop) // 2
        left = tried(start, middle)
        if left is None and not failure.out_of_memory:
            suspects.append((middle, stop, failure))
            continue
        right = tried(middle, stop)
        for begin, end, outcome in ((middle, stop, right), (start, middle, left)):
            if outcome is None:
                continue
            if end - begin == 1 and not outcome.out_of_memory:
                answers[begin] = outcome
            else:
                suspects.append((begin, end, outcome))
    return answers
