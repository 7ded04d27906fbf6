"""Make the demo checkpoint anew, from nothing, and compare it with the one that is shipped: within 1e-6.

Example: python -m benchmarks demo
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors.numpy

from benchmarks.environment import ROOT, describe
from service.settings import DEMO_CHECKPOINT

TOLERANCE = 1e-6


def main(argv: list[str]) -> None:
    """Run the command that made the checkpoint and print the largest difference of each tensor."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "checkpoint"
        output.mkdir()
        started = time.perf_counter()
        environment = {**os.environ, "WORK": f"{folder}/work", "OUTPUT": str(output)}
        subprocess.run(["sh", DEMO_CHECKPOINT / "make.sh"], env=environment, cwd=ROOT, check=True)
        seconds = time.perf_counter() - started
        made, shipped = (safetensors.numpy.load_file(path / "heads.safetensors") for path in (output, DEMO_CHECKPOINT))
    differences = {name: float(np.abs(made[name] - shipped[name]).max()) for name in shipped}
    for name, difference in differences.items():
        print(f"{name:24} largest difference {difference:.1e} of values up to {np.abs(shipped[name]).max():.1e}")
    print(f"made in {seconds:.0f} s")
    if max(differences.values()) > TOLERANCE:
        raise SystemExit(f"the shipped checkpoint is not reproduced within {TOLERANCE:g}")
