"""What crosses between the threads that submit and the one that owns the device."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BaseRewards = npt.NDArray[np.float64]


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

    @classmethod
    def of(cls, A_KD: npt.NDArray[np.floating], b_K: npt.NDArray[np.floating]) -> BaseRewardHeads:
        """Heads from arrays of any float type; they are copied."""
        return cls(np.array(A_KD, dtype=np.float64), np.array(b_K, dtype=np.float64))

    def apply(self, hidden_BD: npt.NDArray[np.float32]) -> BaseRewards:
        """[B, D] hidden states to [B, K] base rewards."""
        rewards_BK: BaseRewards = hidden_BD.astype(np.float64) @ self.A_KD.T + self.b_K
        return rewards_BK


@dataclass(frozen=True, slots=True, eq=False)
class WorkItem:
    """One text on its way to the device.

    Attributes:
        token_ids: The text as the backbone reads it.
        answer: Ends in base rewards [K] float64, or in an error; exactly once.
        submitted_at: When it came, on the monotonic clock.
    """

    token_ids: Sequence[int]
    answer: Future[BaseRewards]
    submitted_at: float

    @property
    def tokens(self) -> int:
        """What it costs in every budget."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Counters since the start.

    Attributes:
        batches: Batches that went to the device.
        items: Texts in them.
        tokens: Tokens in them.
        failed_items: Texts that ended in an error of their own.
        dropped_items: Texts whose caller had left before they reached the device.
        busy_s: Seconds that the device thread spent on batches.
    """

    batches: int = 0
    items: int = 0
    tokens: int = 0
    failed_items: int = 0
    dropped_items: int = 0
    busy_s: float = 0.0
