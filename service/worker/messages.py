"""What crosses between the threads that submit and the one that owns the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from service.errors import MetarewardError

BaseRewards = npt.NDArray[np.float64]


class Heads(Protocol):
    """What the worker applies to hidden states."""

    @property
    def hidden_size(self) -> int:
        """D."""

    def apply(self, hidden_BD: npt.NDArray[np.float32]) -> BaseRewards:
        """[B, D] hidden states to [B, W] answers."""


@dataclass(frozen=True, slots=True, eq=False)
class BaseRewardHeads:
    """A checkpoint's heads as the worker applies them: base rewards phi = A h + b, in float64.

    Attributes:
        A_KD: [K, D] weights.
        b_K: [K] biases.
    """

    A_KD: npt.NDArray[np.float64]
    b_K: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.A_KD.ndim != 2 or self.b_K.shape != self.A_KD.shape[:1]:
            raise ValueError(f"heads of shapes {self.A_KD.shape} and {self.b_K.shape}; expected [K, D] and [K]")

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.A_KD.shape[1])

    @classmethod
    def of(cls, A_KD: npt.NDArray[np.floating], b_K: npt.NDArray[np.floating]) -> BaseRewardHeads:
        """Heads from arrays of any float type; they are copied."""
        return cls(np.array(A_KD, dtype=np.float64), np.array(b_K, dtype=np.float64))

    def apply(self, hidden_BD: npt.NDArray[np.float32]) -> BaseRewards:
        """[B, D] hidden states to [B, K] base rewards."""
        rewards_BK: BaseRewards = hidden_BD.astype(np.float64) @ self.A_KD.T + self.b_K
        return rewards_BK


@dataclass(frozen=True, slots=True, eq=False)
class StackedHeads:
    """Heads of several checkpoints on one backbone: a text is computed once, and its answer has a part for each.

    Every part is a product of its own, so that its numbers are those it has alone, to the bit.

    Attributes:
        parts: The checkpoints' heads, in the order in which their base rewards stand in an answer.
        with_hidden: Whether the hidden state itself follows them.
    """

    parts: tuple[BaseRewardHeads, ...]
    with_hidden: bool = False

    def __post_init__(self) -> None:
        if len({part.hidden_size for part in self.parts}) != 1:
            raise ValueError("stacked heads must read hidden states of one size")

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.parts[0].hidden_size

    @property
    def columns(self) -> list[slice]:
        """Where each part's base rewards stand in an answer."""
        ends = np.cumsum([len(part.b_K) for part in self.parts]).tolist()
        return [slice(end - len(part.b_K), end) for part, end in zip(self.parts, ends, strict=True)]

    @property
    def hidden_columns(self) -> slice | None:
        """Where the hidden state stands; None where it does not."""
        end = self.columns[-1].stop
        return slice(end, end + self.hidden_size) if self.with_hidden else None

    def apply(self, hidden_BD: npt.NDArray[np.float32]) -> BaseRewards:
        """[B, D] hidden states to [B, W]: base rewards of every part, then the hidden state where it is asked for."""
        answers = [part.apply(hidden_BD) for part in self.parts]
        if self.with_hidden:
            answers.append(hidden_BD.astype(np.float64))
        return answers[0] if len(answers) == 1 else np.hstack(answers)


class Answer(Future[BaseRewards]):
    """Ends in base rewards [K] float64, or in an error; exactly once."""

    def __init__(self, left: Callable[[], None]) -> None:
        """`left` is called where the caller takes its text back: cheaper than a callback of every answer."""
        super().__init__()
        self._left = left

    def cancel(self) -> bool:
        """Take the text back, unless it is on the device."""
        cancelled = super().cancel()
        if cancelled:
            self._left()
        return cancelled


@dataclass(slots=True, eq=False)
class WorkItem:
    """One text on its way to the device.

    Attributes:
        token_ids: The text as the backbone reads it.
        tokens: Its length.
        answer: What its caller waits for.
        submitted_at: When it came, on the monotonic clock.
        scope: Whose it is; texts of different scopes share no computation.
        key: Its ids as `packing.encode` gives them; empty where the backbone shares nothing.
        deadline: When nobody waits for it any more, on the monotonic clock.
    """

    token_ids: Sequence[int]
    tokens: int
    answer: Answer
    submitted_at: float
    scope: bytes = b""
    key: bytes = b""
    deadline: float | None = None

    def settle(self, answer: BaseRewards | MetarewardError) -> bool:
        """Give a text that left the queue its answer; False where it has one, because `stop` ran out of patience."""
        try:
            if isinstance(answer, MetarewardError):
                self.answer.set_exception(answer)
            else:
                self.answer.set_result(answer)
        except InvalidStateError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Counters since the start.

    Attributes:
        batches: Batches that went to the device.
        items: Texts in them.
        tokens: Their lengths together.
        computed_tokens: What of that the device computed: common prefixes once.
        failed_items: Texts that ended in an error of their own.
        dropped_items: Texts whose caller had left before they reached the device.
        expired_items: Texts whose deadline had passed before they reached it.
        restarts: How often the thread died and was started again.
        busy_s: Seconds that the device thread spent on batches.
    """

    batches: int = 0
    items: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    failed_items: int = 0
    dropped_items: int = 0
    expired_items: int = 0
    restarts: int = 0
    busy_s: float = 0.0
