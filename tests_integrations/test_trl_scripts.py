"""The script that docs/rlhf/trl.md begins with, and examples/trl_grpo.py, as somebody runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from deployment import Server

from examples.trl_grpo import tiny_policy

ROOT = Path(__file__).resolve().parents[1]


def run(server: Server, folder: Path, *command: str) -> str:
    """What a script prints, run in `folder` with the server that its environment names."""
    environment = {"METAREWARD_URL": server.url, "PATH": os.environ["PATH"], "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    # A GPU is not looked for, whether a machine has one or not.
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    found = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-6000:]
    return found.stdout


def test_the_documented_script_runs_as_it_stands(server: Server, tmp_path: Path) -> None:
    page = (ROOT / "docs/rlhf/trl.md").read_text()
    script = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    policy, tokenizer = tiny_policy()
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    # No hub and not much time here: a tiny policy, a few tokens, two steps.
    for found, instead in (
        (r'model="[^"]+"', f'model="{tmp_path / "policy"}"'),
        (r"max_completion_length=\d+", "max_completion_length=12"),
        (r"max_steps=\d+", "max_steps=2"),
    ):
        script, changes = re.subn(found, instead, script)
        assert changes == 1
    (tmp_path / "train.py").write_text(script)

    printed = run(server, tmp_path, "train.py")

    assert "'rewards/personal_reward/mean'" in printed
    assert "'rewards/personal_reward/cold_start_share': '0'" in printed


def test_the_example_trains_towards_the_people(server: Server, tmp_path: Path) -> None:
    printed = run(server, tmp_path, str(ROOT / "examples/trl_grpo.py"), "--steps", "20")

    first, last = re.search(r"mean personal reward: (\S+) in the first steps, (\S+) in the last", printed).groups()
    assert float(last) > float(first) + 0.3


def test_the_example_trains_in_two_processes(server: Server, tmp_path: Path) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")

    printed = run(server, tmp_path, *launch, str(ROOT / "examples/trl_grpo.py"), "--steps", "2")

    assert "2 process(es), 2 steps" in printed
