"""`metareward serve` as a real process on free ports, to be asked, stopped and killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import httpx

START_TIMEOUT_S = 120.0


class ServerProcess:
    """One server process. `settings` are environment variables; ports are picked free at each start."""

    # What Python runs.
    command: tuple[str, ...] = ("-m", "service", "serve")
    # Settings of the ports that it listens on.
    ports: tuple[str, ...] = ("PORT", "METRICS_PORT")
    # The word before its URL in what it prints.
    announces = "API"

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self.data_dir = data_dir
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None
        self._output: list[str] = []
        self.url = ""
        self.metrics_url = ""
        self.start_s = 0.0

    @property
    def output(self) -> str:
        """What it printed so far."""
        return "".join(self._output)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> ServerProcess:
        """Start it and return when it answers."""
        environment = {
            **{name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}},
            "DATA_DIR": str(self.data_dir),
            **dict.fromkeys(self.ports, "0"),
            "PYTHONUNBUFFERED": "1",
            **self._settings,
        }
        started = time.perf_counter()
        self._output.clear()
        self._process = subprocess.Popen(
            [sys.executable, *self.command],
            env=environment,
            cwd=Path(__file__).resolve().parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        ready = threading.Event()
        threading.Thread(target=self._read, args=(self._process, ready), daemon=True).start()
        while not ready.wait(0.05):
            if self._process.poll() is not None:
                time.sleep(0.2)
                raise AssertionError(f"the server ended with {self._process.returncode}:\n{self.output}")
            if time.perf_counter() - started > START_TIMEOUT_S:
                self.kill()
                raise AssertionError(f"the server did not start:\n{self.output}")
        self.start_s = time.perf_counter() - started
        return self

    def _read(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._output.append(line)
            if match := re.match(rf"{self.announces} +(http://\S+)$", line.strip()):
                self.url = match[1]
            if match := re.search(r"metrics +(http://\S+)$", line.strip()):
                self.metrics_url = match[1]
            if "Ctrl-C" in line:
                ready.set()

    def stop(self) -> int:
        """SIGTERM, as an orchestrator would; the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(30)

    def wait(self) -> int:
        """Its exit status, once it has ended by itself."""
        assert self._process is not None
        return self._process.wait(60)

    def kill(self) -> None:
        """SIGKILL: nothing gets a chance to be written."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)

    def __enter__(self) -> ServerProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    @contextlib.contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """A client of this server; open one after each start."""
        with httpx.Client(base_url=self.url, timeout=60.0) as client:
            yield client
