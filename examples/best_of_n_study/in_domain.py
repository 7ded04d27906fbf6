"""A checkpoint that knows the answers of one model: other people judge its answers to other prompts, heads are trained.

What anybody with a population and a model would do: `metareward embed`, then `metareward train`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from best_of_n_study.people import Answers, People, questions

PEOPLE: Final = 600
PAIRS_EACH: Final = 80


def train(people: People, answers: Answers, folder: Path, backbone: str, *, pairs: int = PAIRS_EACH) -> Path:
    """Write what people choose, embed it, learn heads and a start from it.

    Args:
        people: Who choose; none of those who are tested.
        answers: What they choose from.
        folder: Where everything is kept, in a folder of its own; what is finished is not done again.
        backbone: `minilm`, or a model's folder or .gguf file.
        pairs: Choices of each.

    Returns:
        The checkpoint's folder.
    """
    rows = []
    for person in range(len(people)):
        for number, asked in enumerate(questions(answers, pairs, (people.seed, person))):
            chosen, rejected = people.choice(person, asked, number)
            row = {"user_id": f"seen-{person}", "prompt": asked.prompt, "chosen": chosen, "rejected": rejected}
            rows.append(json.dumps({**row, "split": "seen", "part": "train"}, ensure_ascii=False))
    text = "\n".join(rows) + "\n"
    # named by what is in it: other answers or people get a folder of their own
    folder = folder / f"trained-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    choices, data, checkpoint = folder / "choices.jsonl", folder / "embedded", folder / "checkpoint"
    if not choices.exists():
        choices.write_text(text, encoding="utf-8")
    _metareward("embed", "--format", "jsonl", "--input", choices, "--backbone", backbone, "--output", data)
    _metareward("train", "--data", data, "--seed", "0", "--name", "best-of-n", "--output", checkpoint)
    return checkpoint


def _metareward(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "service", *map(str, arguments)], check=True)  # noqa: S603
