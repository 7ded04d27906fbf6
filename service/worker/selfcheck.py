"""Does this engine give the numbers that its checkpoint recorded? Asked at every start and on demand.

Two mistakes hide in a batch: texts that see each other (a wrong mask, a wrong position, a wrong index), and a model,
tokenizer or template that is not the one the heads were trained on. Both move base rewards by a good part of their
spread between texts, without any error. So golden texts are scored in company, one by one, and beside the record; and
once more in the company of other texts of the same lengths, which a right engine does not notice in any dtype.

Here is what is asked (`questions`) and what is made of the answers (`judge`). Asking is up to who has the engine.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from prometheus_client import Gauge

from service.backbone.packing import common_tokens, encode
from service.backbone.protocol import Dtype

Against = Literal["batched", "neighbours", "recorded"]
AGAINST: Final[tuple[Against, ...]] = ("batched", "neighbours", "recorded")


@dataclass(frozen=True, slots=True)
class Tolerances:
    """The largest differences that rounding explains, for one dtype; `neighbours` holds on an idle engine only."""

    batched: float
    neighbours: float
    recorded: float


# Differences are root mean squares over texts and heads, each head in units of its own spread (standard deviation over
# the golden texts). Measured with 2, 8 and 32 random heads, twenty times each, on MiniLM, SmolLM2-135M, a random Llama
# and a random Qwen3, packed on a CPU:
#   batched: at most 1.6e-5 in float32 and 0.26 in bfloat16 (SmolLM2, two heads; 0.12 with eight);
#   neighbours, on an idle engine: 0.0, to the bit, in both;
#   recorded, against a float32 record: 0.02 to 0.31 in bfloat16, 0.15 to 1.2 in float8 (weights and activations rounded
#   to it row by row; SmolLM2 the worst: its golden texts lie close together).
# One text that reads eight tokens of another, or a doubled BOS, moves all texts by 0.13 to 2.8; one text of the six
# gone wrong alone gives about 0.4. So float32 sees every mistake. In fewer bits `neighbours` sees texts that read
# others, since rounding cancels there; a wrong template or position is seen where it is plain, in float8 hardly.
TOLERANCES: Final[dict[Dtype, Tolerances]] = {
    "float32": Tolerances(batched=1e-3, neighbours=1e-4, recorded=1e-3),
    "bfloat16": Tolerances(batched=0.5, neighbours=1e-2, recorded=0.35),
    "float8": Tolerances(batched=1.5, neighbours=1e-2, recorded=1.5),
}
# A head that hardly tells the golden texts apart is measured by the spread of the others.
_SMALLEST_RELATIVE_SPREAD: Final = 0.01

Rewards = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class GoldenRecord:
    """What every engine must answer.

    Attributes:
        texts: G golden texts as token ids.
        recorded_GK: Their recorded base rewards, with or without biases as the engine gives them; None without.
        recorded_dtype: What the record was computed in.
        dtype: What an engine computes in that does not say.
        packing: Further texts, which no record holds, for how they are packed: `packing_token_ids(renderer)`.
    """

    texts: Sequence[Sequence[int]]
    recorded_GK: Rewards | None
    recorded_dtype: Dtype
    dtype: Dtype
    packing: Sequence[Sequence[int]] = field(default=())


@dataclass(frozen=True, slots=True)
class Question:
    """Texts to be scored together, in a scope of their own: nothing that was kept of another question answers it."""

    texts: Sequence[Sequence[int]]
    scope: bytes


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure and what it may be at most; one that is not finite never passes."""

    against: Against
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether rounding explains it."""
        return self.difference <= self.tolerance


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """What came of it.

    Attributes:
        dtype: What the engine computes in.
        comparisons: In company against alone, in other company, and alone against the record, as far as asked.
    """

    dtype: Dtype
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        """Whether every comparison did."""
        return all(comparison.passed for comparison in self.comparisons)

    def difference(self, against: Against) -> float | None:
        """The figure of one comparison; None where it was not made."""
        return next((c.difference for c in self.comparisons if c.against == against), None)

    def __str__(self) -> str:
        told = ", ".join(
            f"{'' if c.passed else 'NOT '}{c.against} {c.difference:.1e} (at most {c.tolerance:g})"
            for c in self.comparisons
        )
        return f"{self.dtype}: {told}"

    def as_json(self) -> list[dict[str, Any]]:
        """The comparisons as plain values; a difference that is not finite is None."""
        return [
            {
                "against": c.against,
                "difference": c.difference if np.isfinite(c.difference) else None,
                "tolerance": c.tolerance,
                "passed": c.passed,
            }
            for c in self.comparisons
        ]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of one engine after asking it.

    Attributes:
        worker: ``here``, or a remote worker by host, port and path.
        status: `unavailable` says nothing of its numbers: it is down, too busy, or did not answer in time.
        detail: The figures, or why there are none.
        check: None where it did not come to that.
    """

    worker: str
    status: Literal["passed", "failed", "unavailable"]
    detail: str
    check: SelfCheck | None = None

    @classmethod
    def of(cls, worker: str, check: SelfCheck) -> Verdict:
        """The verdict on an engine that answered."""
        return cls(worker, "passed" if check.passed else "failed", str(check), check)

    def as_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return {
            "worker": self.worker,
            "status": self.status,
            "detail": self.detail,
            "dtype": None if self.check is None else self.check.dtype,
            "comparisons": [] if self.check is None else self.check.as_json(),
        }


def questions(golden: GoldenRecord, *, thorough: bool = True) -> list[Question]:
    """What to ask an engine, in order, one after the other.

    Each text alone; all together; then, where there are texts for packing and it is `thorough`, those again in another
    order (what was kept of their prefixes is read now), and all again with every other text changed.
    """
    texts = _texts(golden, thorough)
    together = Question(texts, _scope())
    asked = [*(Question([token_ids], _scope()) for token_ids in texts), together]
    if thorough and golden.packing:
        asked.append(Question(golden.packing[::-1], together.scope))
        asked.append(Question(with_other_neighbours(texts), _scope()))
    return asked


def judge(
    golden: GoldenRecord,
    answers: Sequence[Rewards],
    *,
    dtype: Dtype | None = None,
    idle: bool = False,
    thorough: bool = True,
) -> SelfCheck:
    """Compare the answers to `questions(golden, thorough=thorough)`.

    Args:
        golden: What was asked about.
        answers: Base rewards [N, K] of each question, in order; a text that the engine failed on is a row of NaN.
        dtype: What the engine computes in; None: as `golden` says.
        idle: Whether the engine had nothing else to do. Otherwise other work shares its batches, whose shapes differ
            from question to question, and so does the rounding.
        thorough: As it was asked.

    Returns:
        Differences and verdict.
    """
    dtype = dtype or golden.dtype
    texts = _texts(golden, thorough)
    rounding = TOLERANCES[dtype]
    alone_NK, together_NK = np.concatenate(answers[: len(texts)]), answers[len(texts)]
    golden_GK = alone_NK[: len(golden.texts)]
    recorded_GK = golden_GK if golden.recorded_GK is None else np.asarray(golden.recorded_GK, dtype=np.float64)
    comparable = recorded_GK.shape == golden_GK.shape
    spread_K = _spread(recorded_GK if comparable else golden_GK)
    batched = [_difference(together_NK, alone_NK, spread_K)]
    comparisons = []
    if thorough and golden.packing:
        again_EK, swapped_NK = answers[len(texts) + 1 :]
        batched.append(_difference(again_EK[::-1], alone_NK[len(golden.texts) :], spread_K))
        kept = _kept(len(texts))
        neighbours = _difference(swapped_NK[kept], together_NK[kept], spread_K)
        comparisons.append(Comparison("neighbours", neighbours, rounding.neighbours if idle else rounding.batched))
    comparisons.insert(0, Comparison("batched", float(np.max(batched)), rounding.batched))
    if golden.recorded_GK is not None:
        recorded = _difference(golden_GK, recorded_GK, spread_K) if comparable else float("inf")
        tolerance = max(rounding.recorded, TOLERANCES[golden.recorded_dtype].recorded)
        comparisons.append(Comparison("recorded", recorded, tolerance))
    return SelfCheck(dtype, tuple(comparisons))


def show(check: SelfCheck, gauge: Gauge, *labels: str) -> None:
    """Bring a metric up to date, whose last label is what was compared with."""
    for comparison in check.comparisons:
        gauge.labels(*labels, comparison.against).set(comparison.difference)


def self_check(
    score: Callable[[Question], Rewards], golden: GoldenRecord, *, dtype: Dtype | None = None, idle: bool = False
) -> SelfCheck:
    """Ask and judge. Errors of `score` pass through."""
    return judge(golden, [score(question) for question in questions(golden)], dtype=dtype, idle=idle)


def with_other_neighbours(texts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The same texts, but of those that `_kept` does not name, all that no other text shares is turned round.

    Lengths and common prefixes stay as they are, and so does every shape that the device sees. A text keeps its first
    token of its own: it is what tells it from the others.
    """
    kept = set(_kept(len(texts)).tolist())
    keys = [encode(token_ids) for token_ids in texts]
    changed: list[Sequence[int]] = []
    for index, token_ids in enumerate(texts):
        if index in kept:
            changed.append(token_ids)
            continue
        others = (other for i, other in enumerate(keys) if i != index)
        shared = max((common_tokens(keys[index], other) for other in others), default=0) + 1
        changed.append([*token_ids[:shared], *token_ids[: shared - 1 : -1]])
    return changed


def _kept(count: int) -> npt.NDArray[np.intp]:
    """Every third text; the first and, of the golden ones, the longest are among the others."""
    return np.arange(1, count, 3)


def _texts(golden: GoldenRecord, thorough: bool) -> list[Sequence[int]]:
    return [*golden.texts, *(golden.packing if thorough else ())]


def _scope() -> bytes:
    return secrets.token_bytes(16)


def _spread(reference_GK: Rewards) -> Rewards:
    spread_K = reference_GK.std(axis=0)
    smallest = max(_SMALLEST_RELATIVE_SPREAD * float(spread_K.max()), 1e-12)
    return np.asarray(np.maximum(spread_K, smallest), dtype=np.float64)


def _difference(left_NK: Rewards, right_NK: Rewards, spread_K: Rewards) -> float:
    """Root mean square of the difference, each head in units of its own spread over the golden texts."""
    return float(np.sqrt(np.mean(((left_NK - right_NK) / spread_K) ** 2)))
