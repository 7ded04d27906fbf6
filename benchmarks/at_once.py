"""Best-of-16 over HTTP with SmolLM2-135M: one request of 16 completions beside 16 requests of one at the same time.

Each round has a fresh prompt of about 400 tokens and completions of about 100. Also: the same texts again (nothing is
computed), and what the service costs beyond its engine. Goals: 16 single requests at 75 % of one request's throughput;
repeated texts under 2 ms at p50; under 2 ms beyond the engine at p50.

Example: python -m benchmarks at_once --rounds 5
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from pathlib import Path

import orjson

from benchmarks.environment import describe
from benchmarks.load import Caller, run_load
from benchmarks.random_checkpoint import checkpoint_on, smollm2_gguf
from benchmarks.server import ServerProcess
from service.backbone.load import load_backbone

COMPLETIONS = 16
_WORDS = (
    "river stone window garden music paper bridge winter morning letter forest simple number engine water light "
    "answer market summer village teacher silver yellow travel kitchen story doctor machine picture history planet"
)


def main(argv: list[str]) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    print(describe())
    numbers = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        backbone = load_backbone(str(smollm2_gguf()), device="cpu", dtype="float32")
        checkpoint_on(backbone).save(checkpoint)
        tokens = len(backbone.renderer.tokenise([_prompt(numbers)], _completion(numbers), truncate=False).token_ids)
        del backbone
        # Sixteen texts of 500 tokens are more than the four seconds of work that a slow CPU accepts by default.
        settings = {"CHECKPOINT": str(checkpoint), "MAX_QUEUE_WAIT_S": "60"}
        with ServerProcess(Path(folder) / "data", **settings) as server:
            _measure(f"{server.url}/score", arguments.rounds, numbers, tokens)


def _measure(url: str, rounds: int, numbers: random.Random, tokens: int) -> None:
    together, apart, beyond = [], [], []
    _ask(url, _bodies(numbers, together=True))
    for _ in range(rounds):
        together.append(_ask(url, _bodies(numbers, together=True)))
        apart.append(_ask(url, _bodies(numbers, together=False)))
    with Caller(url) as caller:
        for _ in range(rounds):
            latency_ms, answer = caller.ask(_body(numbers))
            beyond.append(latency_ms - answer["timings_ms"]["engine"])
        body = _body(numbers)
        first = caller.ask(body)[1]
        again = [caller.ask(body) for _ in range(200)]
    assert all(answer["rewards"] == first["rewards"] for _, answer in again)
    assert not any("engine" in answer["timings_ms"] for _, answer in again)  # nothing was computed
    one, many = statistics.median(together), statistics.median(apart)
    print(f"texts of about {tokens} tokens; medians of {rounds}; load average {os.getloadavg()[0]:.1f}")
    print(f"one request of {COMPLETIONS}: {one:.2f} s ({min(together):.2f}-{max(together):.2f})")
    print(
        f"{COMPLETIONS} requests of one at once: {many:.2f} s ({min(apart):.2f}-{max(apart):.2f}); "
        f"{one / many:.0%} of the throughput (goal 75 %)"
    )
    cached = statistics.median(latency for latency, _ in again)
    print(f"the same texts again: p50 {cached:.2f} ms (goal 2), nothing computed")
    print(f"beyond the engine, {COMPLETIONS} fresh texts of {tokens} tokens: p50 {statistics.median(beyond):.1f} ms")


def _ask(url: str, bodies: list[bytes]) -> float:
    """Seconds until all are answered, asked at the same time."""
    result = run_load(url, bodies, requests=len(bodies), connections=len(bodies))
    if result.failures:
        raise SystemExit(
            f"{result.failures} of {len(bodies)} requests were refused or failed; "
            f"is the machine busy with something else (load average {os.getloadavg()[0]:.1f})?"
        )
    return result.wall_s


def _bodies(numbers: random.Random, *, together: bool) -> list[bytes]:
    body = _body(numbers)
    if together:
        return [orjson.dumps(body)]
    return [orjson.dumps({**body, "completions": [completion]}) for completion in body["completions"]]


def _body(numbers: random.Random) -> dict[str, object]:
    return {
        "user_id": "somebody",
        "prompt": [_prompt(numbers)],
        "completions": [_completion(numbers) for _ in range(COMPLETIONS)],
    }


def _prompt(numbers: random.Random) -> dict[str, str]:
    return {"role": "user", "content": " ".join(numbers.choices(_WORDS.split(), k=360))}


def _completion(numbers: random.Random) -> str:
    return " ".join(numbers.choices(_WORDS.split(), k=96))
