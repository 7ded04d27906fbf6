"""A metareward server as a process, and a front before it that can answer 503 as a load balancer does.

What is tried here runs in an environment of its own, so the server is a command: METAREWARD_BIN, which
`make test-integrations` sets.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import httpx

START_TIMEOUT_S = 120.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`metareward serve` on one port and one data folder, to be killed and started again. `settings` are variables."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._data_dir = data_dir
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return when it is ready."""
        environment = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
        environment |= {"DATA_DIR": str(self._data_dir), "PORT": str(self.port), "METRICS_PORT": ""}
        environment |= {"OMP_NUM_THREADS": "1", **self._settings}
        with (self._data_dir / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [os.environ["METAREWARD_BIN"], "serve"],
                env=environment,
                cwd=self._data_dir,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/ready", timeout=5.0).status_code == 200:
                    return
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                self.kill()
                raise AssertionError(
                    f"the server did not start:\n{(self._data_dir / 'server.log').read_text()[-4000:]}"
                )
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL: nothing gets a chance to be written or to say goodbye."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class Front:
    """A TCP front before a server: bytes pass as they are, or every request is answered 503 for a while.

    While the server is down, connections are accepted and closed at once.
    """

    def __init__(self, port: int) -> None:
        self._upstream = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._refuse_for_s: float | None = None
        self._open: set[socket.socket] = set()
        self._on_request: Callable[[], None] | None = None
        self.failed = threading.Event()
        """Set when a connection could not be passed on."""
        self.refused_at: list[float] = []
        """When requests were answered 503, on the monotonic clock."""
        threading.Thread(target=self._accept, daemon=True).start()

    def refuse(self, seconds: float) -> None:
        """Answer 503 from now on, until `seconds` after the first request that got it; open connections are cut."""
        with self._lock:
            self._refuse_for_s = seconds
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def on_next_request(self, then: Callable[[], None]) -> None:
        """Call `then` once, when bytes of a request have been passed on to the server."""
        with self._lock:
            self._on_request = then

    def close(self) -> None:
        """Accept nothing more."""
        self._listener.close()

    def _refuses(self) -> bool:
        with self._lock:
            if self._refuse_for_s is None:
                return False
            now = time.monotonic()
            if self.refused_at and now - self.refused_at[0] > self._refuse_for_s:
                self._refuse_for_s = None
                return False
            self.refused_at.append(now)
            return True

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            if self._refuses():
                self._answer_503(connection)
                return
            try:
                upstream = socket.create_connection(self._upstream)
            except OSError:
                self.failed.set()
                return
            with upstream:
                with self._lock:
                    self._open |= {connection, upstream}
                back = threading.Thread(
                    target=self._pass_on, args=(upstream, connection), kwargs={"to_server": False}, daemon=True
                )
                back.start()
                self._pass_on(connection, upstream, to_server=True)
                back.join()
                with self._lock:
                    self._open -= {connection, upstream}

    def _pass_on(self, source: socket.socket, target: socket.socket, *, to_server: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
                if to_server:
                    with self._lock:
                        then, self._on_request = self._on_request, None
                    if then is not None:
                        then()
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _answer_503(connection: socket.socket) -> None:
        """Read one request whole, or closing would reset the connection before the answer is read; then refuse it."""
        request = b""
        while b"\r\n\r\n" not in request:
            if not (data := connection.recv(65536)):
                return
            request += data
        head, _, body = request.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        missing = int(lengths[0].split(b":")[1]) - len(body) if lengths else 0
        while missing > 0:
            if not (data := connection.recv(65536)):
                return
            missing -= len(data)
        answer = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        connection.sendall(answer)
