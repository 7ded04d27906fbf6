"""Packed and shared against one by one: random mixes of 1 to 64 texts of 1 to 2,000 tokens, prefixes kept between them.

SmolLM2-135M, and random two-layer models of Llama's and Qwen3's shapes, whose every mistake shows. Differences are of
base rewards of size 1 (8 random heads divided by the mean length of a hidden state). Goals: 1e-5 in float32, 2e-2 in
bfloat16. The last column says how far transformers' own padded batches are from one by one.

Example: python -m benchmarks equality --mixes 6
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.environment import describe
from benchmarks.transformer_peers import loop
from benchmarks.vllm_peer import exported_smollm2
from service.backbone.executors.choose import ExecutorOptions, choose_executor
from service.backbone.executors.transformer import PaddedTransformer
from service.backbone.protocol import Dtype

Texts = list[list[int]]
_HEADS = 8


def main(argv: list[str]) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", type=int, default=6)
    parser.add_argument("--longest", type=int, default=2000)
    arguments = parser.parse_args(argv)
    print(describe())
    print(f"{'':34}{'texts':>7}{'packed to alone':>17}{'to transformers':>17}{'its padded batch':>18}")
    for name in ("SmolLM2-135M", "random Llama", "random Qwen3"):
        for dtype in ("float32", "bfloat16"):
            _compare(name, dtype, arguments.mixes, arguments.longest)


def _compare(name: str, dtype: Dtype, mixes: int, longest: int) -> None:
    executor = choose_executor(lambda: _model(name, dtype), "cpu", dtype, ExecutorOptions(prefix_cache_bytes=256 << 20))
    model = _model(name, dtype)
    numbers = random.Random(0)
    largest = [0.0, 0.0, 0.0]
    texts_seen = 0
    for _ in range(mixes):
        texts = _mix(numbers, longest)
        texts_seen += len(texts)
        one_by_one = loop(model, texts)
        heads_KD = torch.randn(_HEADS, one_by_one.shape[1], generator=torch.Generator().manual_seed(0))
        heads_KD /= one_by_one.norm(dim=1).mean()
        alone = torch.cat([executor.forward([text]) for text in texts])
        pairs = [(executor.forward(texts), alone), (executor.forward(texts), one_by_one)]
        pairs.append((PaddedTransformer(model).forward(texts), one_by_one))
        for place, (left, right) in enumerate(pairs):
            largest[place] = max(largest[place], float(((left - right) @ heads_KD.T).abs().max()))
    print(f"{f'{name}, {dtype}':34}{texts_seen:7}{largest[0]:17.1e}{largest[1]:17.1e}{largest[2]:18.1e}", flush=True)


def _model(name: str, dtype: Dtype) -> Any:
    from transformers import AutoModel, LlamaConfig, Qwen3Config

    if name == "SmolLM2-135M":
        source = exported_smollm2()[1]
        return AutoModel.from_pretrained(source, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
    shape = {
        "vocab_size": 49_152,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "initializer_range": 0.3,  # the usual 0.02 makes two layers nearly the identity, and every mistake small
    }
    torch.manual_seed(1)
    config = LlamaConfig(**shape) if name == "random Llama" else Qwen3Config(**shape)
    return AutoModel.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()


def _mix(numbers: random.Random, longest: int) -> Texts:
    """Up to 64 texts: most continue one of a few prompts, some of them each other, some stand alone."""

    def run(most: int) -> list[int]:
        return [numbers.randrange(49_152) for _ in range(round(most ** numbers.random()))]

    prompts: list[Sequence[int]] = [run(longest // 2) for _ in range(3)]
    texts: Texts = []
    for _ in range(numbers.randint(1, 64)):
        start = numbers.choice([[], *prompts, *texts[-1:]])
        texts.append([*start, *run(longest - len(start))][:longest] or [1])
    return texts
