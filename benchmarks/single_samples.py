"""64 clients of one sample a request, as OpenRLHF and verl send them, beside one client that sends batches.

Fresh texts everywhere: prompts with 16 completions each, whose lengths are the same in every round and whose words
never are. The batch client has one request in flight; what counts is the best of its batch sizes. Clients of one
sample take what comes next, so that a prompt's completions are under way together, as in a rollout. OpenRLHF and verl
open a connection for every sample, and so does what stands for them here. Goal: 75 % of the batch client's throughput.

Kinds of client take turns in every round. `CPU ms` is of a sample: where other work takes the machine's time, it says
more than the clock does.

Example: python -m benchmarks single_samples --served smollm2 --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import psutil
from metareward_client import AsyncClient

from benchmarks.environment import describe
from benchmarks.load import run_clients
from benchmarks.random_checkpoint import checkpoint_on, smollm2_gguf
from benchmarks.server import ServerProcess
from service.backbone.load import load_backbone

COMPLETIONS: Final = 16
CLIENTS: Final = 64
BATCH_SIZES: Final = (64, 128, 256, 512)
SERVED: Final = ("smollm2", "minilm", "minilm_long")
_WORDS: Final = (
    "river stone window garden music paper bridge winter morning letter forest simple number engine water light "
    "answer market summer village teacher silver yellow travel kitchen story doctor machine picture history planet"
)
# What aiohttp sends, by which OpenRLHF and verl ask.
_AIOHTTP: Final = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate", "User-Agent": "Python/3.11 aiohttp/3.13"}


@dataclass(frozen=True, slots=True)
class Served:
    """What is served, and what is asked of it.

    Attributes:
        title: In the output.
        settings: Of the server.
        template: Makes a prompt and a completion the text that the backbone reads.
        prompts: In a round.
        prompt_words: From and to how many words they have, a token each.
        completion_words: The same of completions.
    """

    title: str
    settings: dict[str, str]
    template: str
    prompts: int
    prompt_words: tuple[int, int]
    completion_words: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and one of its completions, and both in the backbone's own template."""

    prompt: str
    completion: str
    rendered: str


Ask = Callable[[str, Sequence[Sample]], int]
"""Has a round's samples scored by the server at a URL, and tells how many requests failed."""


@dataclass(slots=True)
class Measured:
    """Rounds of one kind of client: samples a second, and what a sample took."""

    per_second: list[float] = field(default_factory=list)
    client_ms: list[float] = field(default_factory=list)
    server_ms: list[float] = field(default_factory=list)
    batch_texts: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)


def main(argv: list[str]) -> None:
    """Measure and print a table for each backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--served", nargs="+", choices=SERVED, default=SERVED[:2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, help="in a round, with 16 completions each")
    parser.add_argument("--only", nargs="+", default=[""], help="how the names begin of the single clients to measure")
    parser.add_argument("--threads", type=int, help="of the server's products; 1 where other work has the machine busy")
    arguments = parser.parse_args(argv)
    threads = {} if arguments.threads is None else {"OMP_NUM_THREADS": str(arguments.threads)}
    print(describe())
    for name in arguments.served:
        with tempfile.TemporaryDirectory() as folder:
            served = _smollm2(Path(folder)) if name == "smollm2" else _minilm(long=name == "minilm_long")
            # The largest batch is more than the four seconds of work that a slow CPU accepts by default.
            settings = {"MAX_QUEUE_WAIT_S": "600", "REQUEST_TIMEOUT_S": "600", **threads, **served.settings}
            with ServerProcess(Path(folder) / "data", **settings) as server:
                measure(server, served, arguments.prompts or served.prompts, arguments.rounds, tuple(arguments.only))


def _smollm2(folder: Path) -> Served:
    checkpoint_on(load_backbone(str(smollm2_gguf()), device="cpu", dtype="bfloat16")).save(folder / "checkpoint")
    template = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{completion}<|im_end|>\n"
    )
    settings = {"CHECKPOINT": str(folder / "checkpoint"), "DTYPE": "bfloat16"}
    return Served("SmolLM2-135M, bfloat16", settings, template, 8, (100, 200), (50, 100))


def _minilm(*, long: bool) -> Served:
    template = "{prompt}\n\n{completion}"
    if long:
        return Served("MiniLM, long texts", {}, template, 8, (100, 200), (50, 150))
    return Served("MiniLM, short texts", {}, template, 16, (10, 20), (15, 45))


def _kinds(samples: int) -> tuple[dict[str, Ask], dict[str, Ask]]:
    """By name, clients that send batches one after another, and clients of one sample at a time."""
    sizes = [size for size in BATCH_SIZES if size <= samples] or [samples]
    batches = {f"one client, {n} samples a request": _http("/score", _batches(n), clients=1) for n in sizes}
    singles = {
        "OpenRLHF: get_reward": _http("/v1/openrlhf/get_reward", _openrlhf, reconnect=True),
        "verl: /classify": _http("/classify", _classify, reconnect=True),
        "/score, connections kept": _http("/score", _scores),
        "/score, a prompt's samples far apart": _http("/score", _scores, shuffled=True),
        "SDK: AsyncClient.reward": _sdk,
    }
    return batches, singles


def _http(
    path: str,
    bodies_of: Callable[[Sequence[Sample]], list[Any]],
    *,
    clients: int = CLIENTS,
    reconnect: bool = False,
    shuffled: bool = False,
) -> Ask:
    def ask(url: str, samples: Sequence[Sample]) -> int:
        bodies = [orjson.dumps(body) for body in bodies_of(samples)]
        if shuffled:
            random.Random(0).shuffle(bodies)
        result = run_clients(f"{url}{path}", bodies, clients=clients, reconnect=reconnect, headers=_AIOHTTP)
        return result.failures

    return ask


def _batches(size: int) -> Callable[[Sequence[Sample]], list[Any]]:
    def bodies(samples: Sequence[Sample]) -> list[Any]:
        items = [
            {
                "user_id": "somebody",
                "prompt": samples[i].prompt,
                "completions": [sample.completion for sample in samples[i : i + COMPLETIONS]],
            }
            for i in range(0, len(samples), COMPLETIONS)
        ]
        share = max(1, size // COMPLETIONS)
        return [{"items": items[i : i + share]} for i in range(0, len(items), share)]

    return bodies


def _scores(samples: Sequence[Sample]) -> list[Any]:
    return [{"user_id": "somebody", "prompt": s.prompt, "completions": [s.completion]} for s in samples]


def _openrlhf(samples: Sequence[Sample]) -> list[Any]:
    """The policy's template is ChatML, whatever the backbone's is."""
    bodies = []
    for sample in samples:
        prompt = f"<|im_start|>user\n{sample.prompt}<|im_end|>\n<|im_start|>assistant\n"
        query = f"{prompt}{sample.completion}<|im_end|>\n"
        bodies.append({"query": [query], "prompts": [prompt], "labels": ["somebody"]})
    return bodies


def _classify(samples: Sequence[Sample]) -> list[Any]:
    return [{"input": sample.rendered, "use_activation": False, "user": "somebody"} for sample in samples]


def _sdk(url: str, samples: Sequence[Sample]) -> int:
    waiting = iter(samples)

    async def client(server: AsyncClient) -> None:
        for sample in waiting:
            await server.reward(sample.prompt, sample.completion, user_id="somebody")

    async def drive() -> None:
        async with AsyncClient(url, timeout=600.0) as server:
            await asyncio.gather(*(client(server) for _ in range(CLIENTS)))

    asyncio.run(drive())
    return 0


def measure(server: ServerProcess, served: Served, prompts: int, rounds: int, only: tuple[str, ...]) -> None:
    """Measure all kinds of client in turn, and print a table."""
    rounds_of_samples = _samples(served, prompts)
    batches, singles = _kinds(prompts * COMPLETIONS)
    singles = {name: ask for name, ask in singles.items() if name.startswith(only)}
    kinds = [*batches.items(), *singles.items()]
    process = psutil.Process(server.pid)
    for _, ask in kinds[len(batches) - 1 :]:  # what is made once is made, and queues have learned what is usual
        ask(server.url, next(rounds_of_samples)[:COMPLETIONS])
    found = {name: Measured() for name, _ in kinds}
    for i in range(rounds):
        turn = i % len(kinds)
        for name, ask in kinds[turn:] + kinds[:turn]:
            _run(server, process, name, ask, next(rounds_of_samples), found[name])
    best = max(batches, key=lambda name: statistics.median(found[name].per_second))
    print(
        f"{served.title}: {prompts} prompts of {COMPLETIONS} completions a round; medians of {rounds} rounds "
        f"(least-most); load average {os.getloadavg()[0]:.1f}"
    )
    print(_TABLE.format("", "samples/s", "of the best", "CPU ms", "CPU ms", "texts", "tokens", "device"))
    print(_TABLE.format("", "", "batch client", "client", "server", "a batch", "a text", "idle"))
    for name, measured in found.items():
        shares = [own / peer for own, peer in zip(measured.per_second, found[best].per_second, strict=True)]
        speed, idle = statistics.median(measured.per_second), statistics.median(measured.idle)
        numbers = (measured.client_ms, measured.server_ms, measured.batch_texts, measured.tokens)
        print(
            _TABLE.format(
                name,
                f"{speed:.1f} ({min(measured.per_second):.1f}-{max(measured.per_second):.1f})",
                f"{statistics.median(shares):.0%} ({min(shares):.0%}-{max(shares):.0%})",
                *(f"{statistics.median(each):.2f}" for each in numbers),
                f"{idle:.0%}",
            )
        )


_TABLE: Final = "{:38}{:>22}{:>18}{:>8}{:>8}{:>9}{:>8}{:>8}"


def _run(
    server: ServerProcess, process: psutil.Process, name: str, ask: Ask, samples: Sequence[Sample], into: Measured
) -> None:
    """One round of one kind of client."""
    before, server_s, client_s = _batch_metrics(server), sum(process.cpu_times()[:2]), time.process_time()
    started = time.perf_counter()
    failures = ask(server.url, samples)
    wall_s = time.perf_counter() - started
    client_s, server_s = time.process_time() - client_s, sum(process.cpu_times()[:2]) - server_s
    if failures:
        raise SystemExit(f"{name}: {failures} requests failed")
    count, texts, tokens, busy_s = (b - a for a, b in zip(before, _batch_metrics(server), strict=True))
    if texts != len(samples):
        raise SystemExit(f"{name}: the device computed {texts:.0f} texts for {len(samples)} samples")
    into.per_second.append(len(samples) / wall_s)
    into.client_ms.append(1e3 * client_s / len(samples))
    into.server_ms.append(1e3 * server_s / len(samples))
    into.batch_texts.append(texts / count)
    into.tokens.append(tokens / texts)
    into.idle.append(1.0 - busy_s / wall_s)
    print(f"{name}: {len(samples) / wall_s:.1f}/s", file=sys.stderr)


def _batch_metrics(server: ServerProcess) -> tuple[float, ...]:
    """Batches, texts, computed tokens and seconds on the device until now."""
    lines = httpx.get(server.metrics_url).text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    names = ("batch_texts_count", "batch_texts_sum", "batch_tokens_sum", "batch_seconds_sum")
    return tuple(float(values[f"metareward_{name}"]) for name in names)


def _samples(served: Served, prompts: int) -> Iterator[list[Sample]]:
    """Rounds of samples, prompt by prompt: the same lengths, other words."""
    lengths, words = random.Random(1), random.Random(2)
    prompt_lengths = [lengths.randint(*served.prompt_words) for _ in range(prompts)]
    completion_lengths = [
        [lengths.randint(*served.completion_words) for _ in range(COMPLETIONS)] for _ in range(prompts)
    ]
    text = functools.partial(words.choices, _WORDS.split())
    while True:
        samples = []
        for prompt_length, own_lengths in zip(prompt_lengths, completion_lengths, strict=True):
            prompt = " ".join(text(k=prompt_length))
            for length in own_lengths:
                completion = " ".join(text(k=length))
                rendered = served.template.format(prompt=prompt, completion=completion)
                samples.append(Sample(prompt, completion, rendered))
        yield samples
