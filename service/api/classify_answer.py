"""The answer to vLLM's `POST /classify`."""

from __future__ import annotations

import secrets
import time
from typing import Any

import numpy as np
import numpy.typing as npt


def classify_answer(model: str, rewards_BK: npt.NDArray[np.float64], tokens: int) -> dict[str, Any]:
    """One entry for each row of `rewards_BK`, unrounded; `tokens` is what the texts had together."""
    largest_B = rewards_BK.argmax(axis=1).tolist()
    rows = [
        {"index": index, "label": f"LABEL_{largest}", "probs": row_K, "num_classes": len(row_K)}
        for index, (row_K, largest) in enumerate(zip(rewards_BK.tolist(), largest_B, strict=True))
    ]
    return {
        "id": f"classify-{secrets.token_hex(8)}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": rows,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }
