"""A server for as long as it is needed: `metareward serve` on a free port, its users in a folder that goes."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(checkpoint: Path | None = None) -> Iterator[str]:
    """Start a server, and stop it at the end.

    Args:
        checkpoint: What it serves; None: the demo checkpoint.

    Yields:
        Its URL.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "service", "serve", "--port", "0", "--metrics-port", "0", "--data-dir", folder]
        if checkpoint is not None:
            command += ["--checkpoint", str(checkpoint)]
        log = Path(folder) / "log"
        with log.open("w+", encoding="utf-8") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603
            try:
                yield _url(process, log)
            finally:
                process.terminate()
                process.wait(60)


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    while True:
        ended = process.poll()
        said = log.read_text(encoding="utf-8")
        if found := re.search(r"^ *API +(http://\S+)$", said, re.MULTILINE):
            return found[1]
        if ended is not None:
            raise SystemExit(f"the server did not start:\n{said}")
        time.sleep(0.1)
