"""What is kept of evidence besides its base rewards, where the deployment keeps more: texts, or hidden states.

A payload is one letter for its kind, then its content. Completions stand in the order of the base rewards that the
evidence was made from.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import orjson

from service.backbone.protocol import Message

Retention = Literal["base_rewards", "hidden_states", "texts"]
HiddenStates = npt.NDArray[np.float32]

_TEXTS: Final = b"t"
_HIDDEN_STATES: Final = b"h"
_SHAPE: Final = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class RetainedTexts:
    """The prompt and the completions that a user judged."""

    messages: Sequence[Message]
    completions: Sequence[str]


@dataclass(frozen=True, slots=True, eq=False)
class RetainedHiddenStates:
    """What the backbone makes of the texts that a user judged, [n, D]: enough for base rewards under other heads."""

    states_ND: HiddenStates


def retain_texts(messages: Sequence[Message], completions: Sequence[str]) -> bytes:
    """The payload of texts."""
    written = orjson.dumps({"messages": list(messages), "completions": list(completions)})
    return _TEXTS + zlib.compress(written, 6)


def retain_hidden_states(states_ND: HiddenStates) -> bytes:
    """The payload of hidden states [n, D]."""
    return _HIDDEN_STATES + _SHAPE.pack(*states_ND.shape) + np.ascontiguousarray(states_ND, dtype="<f4").tobytes()


def read_retained(payload: bytes) -> RetainedTexts | RetainedHiddenStates:
    """The inverse of both.

    Raises:
        ValueError: It is neither.
    """
    kind, content = payload[:1], payload[1:]
    if kind == _TEXTS:
        read = orjson.loads(zlib.decompress(content))
        return RetainedTexts(read["messages"], read["completions"])
    if kind == _HIDDEN_STATES:
        shape = _SHAPE.unpack_from(content)
        return RetainedHiddenStates(np.frombuffer(content, "<f4", offset=_SHAPE.size).reshape(shape))
    raise ValueError("this payload was retained by a newer version of this server")
