"""Prompts of users as a data set for verl: `python examples/verl_data.py PROMPTS.jsonl TRAIN.parquet`.

Each line of PROMPTS.jsonl (examples/prompts.jsonl is one) has `prompt`, a text or messages, and `user_id`, null for
nobody in particular. Needs pyarrow, which verl brings.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def row(index: int, prompt: str | list[dict[str, str]], user_id: str | None) -> dict[str, Any]:
    """One row as verl reads it; what the reward function gets of it is `extra_info`."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {
        "data_source": "personal",
        "prompt": messages,
        "reward_model": {"style": "model", "ground_truth": ""},
        "extra_info": {"index": index, "prompt": messages, "user_id": user_id},
    }


def rows(path: Path) -> list[dict[str, Any]]:
    """Every line of a JSONL file as a row."""
    asked = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [row(index, each["prompt"], each.get("user_id")) for index, each in enumerate(asked)]


if __name__ == "__main__":
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(Path(sys.argv[1]))), sys.argv[2])
