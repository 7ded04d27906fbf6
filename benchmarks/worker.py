"""`metareward worker` as a real process, to be asked, stopped, killed and frozen."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx

from benchmarks.server import ServerProcess


class WorkerProcess(ServerProcess):
    """One worker process. It keeps its port when it is started again, as the URL of a service does."""

    command = ("-m", "service", "worker")
    ports = ("WORKER_PORT", "WORKER_METRICS_PORT")
    announces = "classify"

    def __init__(self, data_dir: Path, **settings: str) -> None:
        super().__init__(data_dir, **settings)
        self.port: int | None = None

    def start(self) -> WorkerProcess:
        """Start it and return when it answers."""
        if self.port is not None:
            self._settings["WORKER_PORT"] = str(self.port)
        super().start()
        self.url = self.url.removesuffix("/classify")
        self.port = httpx.URL(self.url).port
        return self

    def __enter__(self) -> WorkerProcess:
        return self.start()

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
