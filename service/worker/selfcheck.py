"""Does this engine give the numbers that its checkpoint recorded? Asked at every start, before it takes traffic.

Two mistakes hide in a batch: texts that see each other (a wrong mask, a wrong position, a wrong index), and a model,
tokenizer or template that is not the one the heads were trained on. Both move base rewards by a good part of their
spread between texts, without any error. So golden texts are scored together, one by one, and beside the record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from service.backbone.protocol import Dtype

# Differences are root mean squares over golden texts and heads, each head in units of its own spread (standard
# deviation over the golden texts). Measured with 2 to 32 random heads on MiniLM, SmolLM2-135M, a random Llama and a
# random Qwen3: batched against alone at most 5e-6 in float32 and 0.11 in bfloat16; bfloat16 against a float32 record
# 0.02 to 0.31 (SmolLM2 the worst: its golden texts lie close together). One text that reads eight tokens of another,
# or a doubled BOS, moves all texts by 0.13 to 2.8; one text of the six gone wrong alone gives about 0.4.
# So a check in float32 sees every mistake, and one in bfloat16 only the plain ones.
TOLERANCES: Final[dict[Dtype, float]] = {"float32": 1e-3, "bfloat16": 0.35}
# A head that hardly tells the golden texts apart is measured by the spread of the others.
_SMALLEST_RELATIVE_SPREAD: Final = 0.01

ScoreTexts = Callable[[Sequence[Sequence[int]]], npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """What came of it.

    Attributes:
        batched_difference: Golden texts scored together against one by one; in units of each base reward's spread.
        recorded_difference: One by one against the checkpoint's record, in the same unit; None without a record.
        tolerance: What both may be at most.
        passed: Whether they are (a number that is not finite never passes).
    """

    batched_difference: float
    recorded_difference: float | None
    tolerance: float
    passed: bool

    def __str__(self) -> str:
        recorded = "none" if self.recorded_difference is None else f"{self.recorded_difference:.1e}"
        return (
            f"largest difference {self.batched_difference:.1e} between batched and alone, {recorded} to the record; "
            f"at most {self.tolerance:.0e} is allowed"
        )


def self_check(
    score: ScoreTexts,
    golden_texts: Sequence[Sequence[int]],
    *,
    dtype: Dtype,
    recorded_GK: npt.NDArray[np.floating] | None = None,
    recorded_dtype: Dtype = "float32",
) -> SelfCheck:
    """Score the golden texts together, one by one, and beside the record.

    Args:
        score: Texts (token ids) to base rewards [N, K]: `Worker.base_rewards`, or a remote engine's.
        golden_texts: `golden_token_ids(renderer)`: G texts.
        dtype: What the engine computes in.
        recorded_GK: The checkpoint's record [G, K], made from the same golden texts; None where it has none.
        recorded_dtype: What the record was computed in.

    Returns:
        Differences and verdict. Errors of `score` pass through.
    """
    together_GK = score(golden_texts)
    alone_GK = np.concatenate([score([token_ids]) for token_ids in golden_texts])
    tolerance = max(TOLERANCES[dtype], TOLERANCES[recorded_dtype] if recorded_GK is not None else 0.0)
    reference_GK = alone_GK if recorded_GK is None else np.asarray(recorded_GK, dtype=np.float64)
    if reference_GK.shape != alone_GK.shape:
        return SelfCheck(_difference(together_GK, alone_GK, alone_GK), float("inf"), tolerance, passed=False)
    batched = _difference(together_GK, alone_GK, reference_GK)
    recorded = None if recorded_GK is None else _difference(alone_GK, reference_GK, reference_GK)
    passed = batched <= tolerance and (recorded is None or recorded <= tolerance)
    return SelfCheck(batched, recorded, tolerance, passed)


def _difference(
    left_GK: npt.NDArray[np.float64], right_GK: npt.NDArray[np.float64], reference_GK: npt.NDArray[np.float64]
) -> float:
    """Root mean square of the difference, each head in units of its own spread over the golden texts."""
    spread_K = reference_GK.std(axis=0)
    spread_K = np.maximum(spread_K, max(_SMALLEST_RELATIVE_SPREAD * float(spread_K.max()), 1e-12))
    return float(np.sqrt(np.mean(((left_GK - right_GK) / spread_K) ** 2)))
