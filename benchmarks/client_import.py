"""What `pip install ./sdk` brings into an empty environment, and how long importing it takes, beside importing httpx.

Example: python -m benchmarks client_import
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.environment import ROOT, describe

LIST = """
import importlib.metadata, json
print(json.dumps({each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}))
"""
IMPORTS = {
    "python alone": "pass",
    "metareward_client": "import metareward_client",
    "its Client and AsyncClient": "from metareward_client import AsyncClient, Client",
    "httpx": "import httpx",
    "httpx and pydantic.BaseModel": "import httpx; from pydantic import BaseModel",
}


def main(argv: list[str]) -> None:
    """Make an environment, and print what is in it and one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args(argv)
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        python = empty_environment(Path(folder))
        before = installed(python)
        install_client(python)
        brought = sorted(f"{name} {version}" for name, version in installed(python).items() if name not in before)
        print(f"brought by the client: {', '.join(brought)}")
        seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
        for _ in range(arguments.rounds + 1):
            for name, statement in IMPORTS.items():
                started = time.perf_counter()
                subprocess.run([python, "-c", statement], check=True)
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(each[1:]) * 1e3 for name, each in seconds.items()}  # the first compiles
    alone = medians.pop("python alone")
    print(f"milliseconds beyond a bare interpreter ({alone:.0f} ms), median of {arguments.rounds} processes:")
    for name, total in medians.items():
        print(f"  {name:<30} {total - alone:6.0f}   ratio to httpx {(total - alone) / (medians['httpx'] - alone):.2f}")


def empty_environment(folder: Path) -> Path:
    """A new virtual environment in `folder`; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    return folder / "env" / "bin" / "python"


def installed(python: Path) -> dict[str, str]:
    """Distributions of an environment and their versions."""
    listed = subprocess.run([python, "-c", LIST], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(listed.stdout)
    return found


def install_client(python: Path) -> None:
    """Install the client as its README says, at the versions of constraints.txt."""
    subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "-c", "constraints.txt", "./sdk"],
        cwd=ROOT,
        check=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
