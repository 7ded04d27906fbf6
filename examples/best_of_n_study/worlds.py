"""Whose answers are judged: SmolLM2's, or those of the writer that the demo checkpoint was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from best_of_n_study.answers import Sampling, written
from best_of_n_study.prompts import SUPPORT_PROMPTS, TEST_PROMPTS, TRAINING_PROMPTS
from best_of_n_study.study import World
from service.datasets.simulated_phrases_heldout import HELD_OUT
from service.datasets.simulated_phrases_training import TRAINING
from service.datasets.simulated_prompts import HELD_OUT_TOPICS, TRAINING_TOPICS, write_prompts

ANSWERS: Final = 16
KEPT: Final = Path(__file__).parent / "answers.jsonl.gz"
"""Answers that were sampled before: what the figures in the docs are of."""

_SEED: Final = 7
_SIMULATED_PROMPTS: Final = 48


def smollm2(file: Path) -> World:
    """SmolLM2-135M-Instruct's answers, from `file` as far as it has them."""
    told_about = written(SUPPORT_PROMPTS, ANSWERS, file, Sampling())
    return World(told_about, written(TEST_PROMPTS, ANSWERS, file, Sampling()))


def other_answers(file: Path) -> dict[str, list[str]]:
    """SmolLM2's answers to the prompts that are not for the test: one more test, where they play no other part."""
    return written([*TRAINING_PROMPTS, *SUPPORT_PROMPTS], ANSWERS, file, Sampling())


def training_answers(file: Path) -> dict[str, list[str]]:
    """What a checkpoint is trained on: SmolLM2's answers to twelve prompts, simulated ones to four times as many."""
    random = np.random.default_rng(_SEED)
    simulated = write_prompts(TRAINING_TOPICS, TRAINING, _SIMULATED_PROMPTS, ANSWERS, random)
    return {
        **written(TRAINING_PROMPTS, ANSWERS, file, Sampling()),
        **{prompt.question: list(prompt.answers) for prompt in simulated},
    }


def simulator() -> World:
    """Answers of `metareward simulate` in its held-out words, on topics that no seen person was asked about."""
    count = 2 * len(HELD_OUT_TOPICS)
    prompts = write_prompts(HELD_OUT_TOPICS, HELD_OUT, count, ANSWERS, np.random.default_rng(_SEED))
    topics = list(dict.fromkeys(prompt.topic for prompt in prompts))
    told = set(topics[::2])
    parts: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    for prompt in prompts:
        parts[prompt.topic not in told][prompt.question] = list(prompt.answers)
    return World(*parts)
