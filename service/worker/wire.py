"""What goes between a REST layer and a worker: vLLM's `POST /classify`, read strictly. No I/O.

A worker of ours and a stock `vllm serve` of an exported checkpoint are told apart by nothing here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import orjson

from service.backbone.protocol import Dtype

CLASSIFY_PATH: Final = "/classify"
MODELS_PATH: Final = "/v1/models"
QUEUED_TOKENS_HEADER: Final = "x-queued-tokens"
TIMEOUT_HEADER: Final = "x-timeout-ms"
OVERLOADED_TYPE: Final = "OverloadedError"
UNAVAILABLE_TYPE: Final = "ServiceUnavailableError"
TIMEOUT_TYPE: Final = "TimeoutError"
_LONGEST_RETRY_AFTER_S: Final = 60.0
_NAMED_TEXT: Final = re.compile(r"(?:^|; )input\[([0-9]{1,6})\]")

Reason = Literal["connection", "timeout", "status", "model", "golden", "answer"]
_WRONG: Final = frozenset[Reason](("model", "golden", "answer"))


class WorkerFailed(Exception):
    """The worker is not to be used until it has proved itself again.

    Attributes:
        reason: As the metric names it.
        hangs: Whether what else it holds is not worth waiting for.
        reached: Whether the request may have come to it, so that a text in it may be to blame.
    """

    def __init__(self, reason: Reason, message: str, *, hangs: bool = False, reached: bool = True) -> None:
        super().__init__(reason, message)
        self.reason: Reason = reason
        self.message = message
        self.hangs = hangs
        self.reached = reached

    def __str__(self) -> str:
        return self.message

    @property
    def tells_wrong(self) -> bool:
        """Whether it answers, and what it answers is wrong; otherwise it does not answer."""
        return self.reason in _WRONG


class OutOfTime(WorkerFailed):
    """The worker did not finish in the time that it had: its own limit, or what the request gave it."""

    def __init__(self) -> None:
        super().__init__("timeout", "it does not answer in time")
        self.args = ()


class WorkerBusy(Exception):
    """The worker took nothing of this request and may take it after `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class TextsRefused(Exception):
    """The worker answers, but not these texts: one of them is at fault, or the worker is.

    Attributes:
        suspicious: Whether it may be the worker; asking it golden texts tells.
        named: Indices of the texts that it says are at fault; empty where it does not say.
    """

    def __init__(self, message: str, *, suspicious: bool, named: frozenset[int] = frozenset()) -> None:
        super().__init__(message, suspicious, named)
        self.message = message
        self.suspicious = suspicious
        self.named = named


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What `/v1/models` tells of the model that was looked for; `dtype` where the worker is one of ours."""

    dtype: Dtype | None


def classify_body(model: str, texts: Sequence[Sequence[int]], scope: bytes = b"") -> bytes:
    """The body of `POST /classify` for texts of one scope as token ids.

    vLLM keeps apart in its prefix cache what comes with different salts; of ours the salt is the scope.
    """
    body: dict[str, object] = {"model": model, "input": texts, "use_activation": False}
    if scope:
        body["cache_salt"] = scope.hex()
    return orjson.dumps(body)


def timeout_header(timeout_s: float) -> dict[str, str]:
    """What tells a worker of ours how long its answer is waited for; rounded up, so that it never gives up first."""
    return {TIMEOUT_HEADER: str(max(1, math.ceil(timeout_s * 1000)))}


def read_classify(
    status: int, headers: Mapping[str, str], content: bytes, *, model: str, texts: int, heads: int
) -> npt.NDArray[np.float64]:
    """A h [texts, heads] from an answer to `POST /classify`.

    Raises:
        WorkerFailed: Another model, another shape, no JSON, or a status that speaks against the worker. `OutOfTime`
            where it says that time was up.
        WorkerBusy: It is overloaded.
        TextsRefused: 400, 413, 422 or 500, or numbers that are not finite.
    """
    if status != 200:
        raise _failure(status, headers, content)
    answer = _object(content)
    if answer.get("model") != model:
        raise WorkerFailed("model", "it answers for another model")
    rows = answer.get("data")
    if not isinstance(rows, list) or len(rows) != texts:
        raise WorkerFailed("answer", f"it was asked {texts} texts and answered another number")
    try:
        if any(row["index"] != index for index, row in enumerate(rows)):
            raise WorkerFailed("answer", "its answers are not in order")
        # A number that is not finite is null in strict JSON.
        rewards_BK = np.array([row["probs"] for row in rows], dtype=np.float64)
    except (TypeError, ValueError, KeyError) as error:
        raise WorkerFailed("answer", "its answers are not of the shape that vLLM documents") from error
    if rewards_BK.shape != (texts, heads):
        raise WorkerFailed("answer", f"its answers have shape {list(rewards_BK.shape[1:])}; expected [{heads}]")
    finite_B = np.isfinite(rewards_BK).all(axis=1)
    if not finite_B.all():
        named = frozenset(np.flatnonzero(~finite_B).tolist())
        raise TextsRefused("its numbers are not finite", suspicious=True, named=named)
    return rewards_BK


def read_models(status: int, headers: Mapping[str, str], content: bytes, *, model: str) -> ServedModel:
    """The model among those of `GET /v1/models`.

    Raises:
        WorkerFailed, WorkerBusy: It is not there, or the worker says something else.
    """
    if status != 200:
        failure = _failure(status, headers, content)
        raise failure if not isinstance(failure, TextsRefused) else WorkerFailed("status", f"it answers {status}")
    served = _object(content).get("data")
    for entry in served if isinstance(served, list) else []:
        if isinstance(entry, dict) and entry.get("id") == model:
            dtype = entry.get("dtype")
            return ServedModel(dtype if dtype in get_args(Dtype) else None)
    raise WorkerFailed("model", "it serves another checkpoint; its heads_id is not the one of this server")


def read_queued_tokens(headers: Mapping[str, str]) -> int | None:
    """What the worker says of its queue; None where it does not."""
    value = headers.get(QUEUED_TOKENS_HEADER, "")
    return int(value) if value.isascii() and value.isdigit() else None


def _failure(status: int, headers: Mapping[str, str], content: bytes) -> WorkerFailed | WorkerBusy | TextsRefused:
    kind = _error_type(content)
    if status == 503 and kind is not None and kind != UNAVAILABLE_TYPE:
        return WorkerBusy(_retry_after(headers))
    if status in (400, 413, 422, 500):
        return TextsRefused(f"the worker answers {status}", suspicious=status == 500, named=_named_texts(content))
    if status == 504 and kind == TIMEOUT_TYPE:
        return OutOfTime()
    if status == 404:
        return WorkerFailed("model", "it does not know this model, or has no /classify")
    if status == 401:
        return WorkerFailed("status", "it refuses ENGINE_API_KEY; set the same one on both sides")
    return WorkerFailed("status", f"it answers {status}")


def _retry_after(headers: Mapping[str, str]) -> float:
    value = headers.get("retry-after", "")
    seconds = float(value) if value.isascii() and value.isdigit() else 1.0
    return min(_LONGEST_RETRY_AFTER_S, max(1.0, seconds))


def _error_type(content: bytes) -> str | None:
    """The type of an error in vLLM's shape; None: something else answered, a proxy say."""
    try:
        error = orjson.loads(content)["error"]
        return str(error["type"])
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return None


def _named_texts(content: bytes) -> frozenset[int]:
    """Indices of the texts that an error names, as ours does."""
    try:
        message = orjson.loads(content)["error"]["message"]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return frozenset()
    return frozenset(map(int, _NAMED_TEXT.findall(message))) if isinstance(message, str) else frozenset()


def _object(content: bytes) -> dict[str, Any]:
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            answer = json.loads(content)  # Python's servers write NaN, which is no JSON
        except ValueError as error:
            raise WorkerFailed("answer", "its answer is no JSON") from error
    if not isinstance(answer, dict):
        raise WorkerFailed("answer", "its answer is no JSON object")
    return answer
