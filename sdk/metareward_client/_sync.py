"""The thin loop that drives a call's attempts, blocking."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from metareward_client._attempts import Attempts, Broken, Done, Send, Wait
from metareward_client._call import Call
from metareward_client._config import Config

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


class Connections:
    """The HTTPX client of this process; a fork gets one of its own."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._client: httpx.Client | None = None
        self._closed = False

    def get(self) -> httpx.Client:
        """The client.

        Raises:
            RuntimeError: It is closed.
        """
        import httpx

        from metareward_client._http import client_options

        if self._pid != os.getpid():
            # Sockets of the parent are the parent's; its lock may be held by a thread that is not here.
            self._lock = threading.Lock()
            self._client = None
            self._pid = os.getpid()
        with self._lock:
            if self._closed:
                raise RuntimeError("this client is closed")
            if self._client is None:
                transport = self._config.transport
                if transport is not None and not isinstance(transport, httpx.BaseTransport):
                    raise TypeError("transport must be an httpx.BaseTransport")
                self._client = httpx.Client(transport=transport, **client_options(self._config))
            return self._client

    def close(self) -> None:
        """Close every connection. Calls that are under way fail."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None and self._pid == os.getpid():
            client.close()


def run(
    connections: Connections, config: Config, call: Call[T], deadline: float | None, stop: threading.Event | None = None
) -> T:
    """Answer a call within `deadline` seconds.

    Args:
        connections: Where it is sent.
        config: The client's.
        call: What is asked.
        deadline: Seconds, or None for the client's timeout.
        stop: When set, nothing more is sent: the call fails as it stands.

    Raises:
        MetarewardError: See the tree in `errors`.
    """
    from metareward_client._http import begin

    attempts = begin(call, config, deadline)
    while True:
        step = attempts.next(time.monotonic())
        if isinstance(step, Done):
            return step.value
        if isinstance(step, Wait):
            if stop is None:
                time.sleep(step.seconds)
            elif stop.wait(step.seconds):
                attempts.give_up()
        else:
            _send(connections.get(), config, call, attempts, step)


def _send(client: httpx.Client, config: Config, call: Call[T], attempts: Attempts[T], step: Send) -> None:
    import httpx

    from metareward_client._http import TimeLeft, answer_of, broken, request_of

    request = request_of(client, config, call, step)
    left: TimeLeft = request.extensions["timeout"]
    try:
        response = client.send(request, stream=True)
        try:
            body = bytearray()
            for part in response.iter_bytes():
                body += part
                if left.over:
                    attempts.broke(Broken.OUT_OF_TIME, "")
                    return
        finally:
            response.close()
    except (httpx.TransportError, httpx.DecodingError) as error:
        attempts.broke(*broken(error))
    else:
        attempts.answered(answer_of(response, bytes(body)))
