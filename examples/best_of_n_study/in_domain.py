"""A checkpoint that knows the answers of one model: other people judge its answers to other prompts, heads are trained.

What anybody with a population and a model would do: `metareward embed`, then `metareward train`.
"""

from __future__ import annotations

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
        folder: Where everything is kept; what is finished is not done again.
        backbone: `minilm`, or a model's folder or .gguf file.
        pairs: Choices of each.

    Returns:
        The checkpoint's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "choices.jsonl").open("w", encoding="utf-8") as file:
        for person in range(len(people)):
            for number, asked in enumerate(questions(answers, pairs, (people.seed, person))):
                chosen, rejected = people.choice(person, asked, number)
                row = {"user_id": f"seen-{person}", "prompt": asked.prompt, "chosen": chosen, "rejected": rejected}
                file.write(json.dumps({**row, "split": "seen", "part": "train"}, ensure_ascii=False) + "\n")
    data, checkpoint = folder / "embedded", folder / "checkpoint"
    _metareward(
        "embed", "--format", "jsonl", "--input", folder / "choices.jsonl", "--backbone", backbone, "--output", data
    )
    _metareward("train", "--data", data, "--seed", "0", "--name", "best-of-n", "--output", checkpoint)
    return checkpoint


def _metareward(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "service", *map(str, arguments)], check=True)  # noqa: S603
