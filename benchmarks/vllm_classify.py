"""Run by the Python that has vLLM, and importing nothing else: rounds of texts in, seconds and logits of each out.

Usage: python vllm_classify.py TASK.json ANSWER.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Load once, warm up, then measure each round by itself."""
    task = json.loads(Path(sys.argv[1]).read_text())
    from vllm import LLM, PoolingParams, __version__
    from vllm.inputs import TokensPrompt

    started = time.perf_counter()
    model = LLM(
        model=task["model"],
        runner="pooling",
        dtype=task["dtype"],
        max_model_len=task["max_model_len"],
        enable_prefix_caching=True,
        disable_log_stats=True,
        **task["options"],
    )
    load_s = time.perf_counter() - started
    parameters = PoolingParams(task="classify", use_activation=False)

    def ask(texts: list[list[int]]) -> list[list[float]]:
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in texts]
        answers = model.classify(prompts, pooling_params=parameters, use_tqdm=False)
        return [answer.outputs.probs for answer in answers]

    ask([ids[::-1] for ids in task["rounds"][0]])  # the same shapes, and no prefix that a round could find cached
    seconds, rewards = [], []
    for texts in task["rounds"]:
        started = time.perf_counter()
        rewards.append(ask(texts))
        seconds.append(time.perf_counter() - started)
    answer = {"version": __version__, "load_s": load_s, "seconds": seconds, "rewards": rewards}
    Path(sys.argv[2]).write_text(json.dumps(answer))


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()
