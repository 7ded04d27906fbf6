"""Where the programs are that read the deployment files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from absence import missing

ROOT = Path(__file__).resolve().parents[2]
# What `make check-deploy` unpacks: Debian's package without its service.
UNPACKED = Path(sys.executable).parents[1] / "prometheus" / "usr" / "bin"


def program(name: str, how_to_get_it: str = "`make check-deploy` brings it") -> str:
    """The path of a program: unpacked, installed beside this Python, or in PATH."""
    found = shutil.which(name, path=str(UNPACKED)) or shutil.which(name, path=str(Path(sys.executable).parent))
    found = found or shutil.which(name)
    if found is None:
        missing(f"needs the program {name}: {how_to_get_it}")
    return found


def run(*command: str | Path, timeout_s: float = 60.0, cwd: Path = ROOT) -> str:
    """What a command printed; its output is the failure's message."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{output}"
    return done.stdout
