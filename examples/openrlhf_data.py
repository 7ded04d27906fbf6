"""Prompts of users as a data set for OpenRLHF: `python examples/openrlhf_data.py PROMPTS.jsonl TRAIN.jsonl`.

Each line of PROMPTS.jsonl (examples/prompts.jsonl is one) has `prompt`, a text or messages, and `user_id`, null for
nobody in particular. Of a row OpenRLHF tells the reward one column, which --data.label_key names: `label` says who asks
and what, before a chat template has made one text of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def row(prompt: str | list[dict[str, str]], user_id: str | None) -> dict[str, Any]:
    """One row: `prompt` is for the policy, `label` (JSON) for the reward."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    label = json.dumps({"user_id": user_id, "prompt": messages})
    return {"prompt": messages, "label": label}


if __name__ == "__main__":
    asked = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines() if line.strip()]
    lines = [json.dumps(row(each["prompt"], each.get("user_id"))) for each in asked]
    Path(sys.argv[2]).write_text("\n".join(lines) + "\n")
