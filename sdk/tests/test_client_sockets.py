"""Deadlines on real sockets: servers that say nothing, or say it too slowly."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from twins import KINDS, Twin

import metareward_client as mc

pytestmark = pytest.mark.parametrize("kind", KINDS)

Behaviour = Callable[[socket.socket, threading.Event], None]


@contextlib.contextmanager
def serving(behave: Behaviour) -> Iterator[str]:
    """A server that treats every connection so; its URL."""
    over = threading.Event()
    connections: list[socket.socket] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threading.Thread(target=treat, args=(connection,), daemon=True).start()

    def treat(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            behave(connection, over)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            for connection in connections:
                connection.close()


def silence(connection: socket.socket, over: threading.Event) -> None:
    over.wait(20)


def one_byte_at_a_time(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    while not over.wait(0.02):
        connection.sendall(b" ")


def hangs_up(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65536)
    connection.close()


@pytest.mark.parametrize("behave", [silence, one_byte_at_a_time])
def test_a_call_ends_when_its_time_is_up(kind: str, behave: Behaviour) -> None:
    with serving(behave) as url, Twin(kind, base_url=url) as twin:
        began = time.monotonic()
        with pytest.raises(mc.DeadlineExceeded, match="may have been made") as caught:
            twin.reset("ada", deadline=0.3)
        assert 0.25 < time.monotonic() - began < 8
        assert caught.value.idempotency_key is not None


def test_waiting_for_a_connection_is_in_the_deadline(kind: str) -> None:
    with serving(silence) as url, Twin(kind, base_url=url, max_connections=1, batch_size=1) as twin:
        began = time.monotonic()
        with pytest.raises(mc.DeadlineExceeded):
            twin.score_many([{"prompt": f"p{i}", "completions": ["a"]} for i in range(3)], deadline=0.3)
        assert time.monotonic() - began < 8
        with pytest.raises(mc.DeadlineExceeded):
            twin.reward("p", "a", deadline=0.3)
        assert time.monotonic() - began < 16


def test_a_server_that_hangs_up_is_asked_again_until_the_time_is_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metareward_client._attempts.FIRST_WAIT_S", 0.01)
    asked = threading.Semaphore(0)

    def behave(connection: socket.socket, over: threading.Event) -> None:
        asked.release()
        hangs_up(connection, over)

    with serving(behave) as url, Twin(kind, base_url=url) as twin:
        with pytest.raises(mc.TemporaryError) as caught:
            twin.info(deadline=0.5)
        assert isinstance(caught.value, (mc.ConnectionFailed, mc.DeadlineExceeded))
        assert asked.acquire(timeout=1)
        assert asked.acquire(timeout=1), "more than once"
        while asked.acquire(blocking=False):
            pass
        with pytest.raises(mc.ConnectionFailed, match="may have been made"):
            twin.erase("ada", deadline=5)
        assert asked.acquire(timeout=1)
        assert not asked.acquire(timeout=0.1), "once only"
