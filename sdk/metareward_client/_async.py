"""The thin loop that drives a call's attempts, on asyncio."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, TypeVar

from metareward_client._attempts import Attempts, Broken, Done, Send, Wait
from metareward_client._call import Call
from metareward_client._config import Config

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


class Connections:
    """An HTTPX client for each event loop: one client serves loops that follow each other, and such beside each other.

    A fork, too, comes with a loop of its own.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient]
        self._clients = weakref.WeakKeyDictionary()
        self._closed = False

    def get(self) -> httpx.AsyncClient:
        """The client of the running loop.

        Raises:
            RuntimeError: It is closed.
        """
        import httpx

        from metareward_client._http import client_options

        loop = asyncio.get_running_loop()
        if self._pid != os.getpid():
            self._lock = threading.Lock()
            self._clients = weakref.WeakKeyDictionary()
            self._pid = os.getpid()
        with self._lock:
            if self._closed:
                raise RuntimeError("this client is closed")
            client = self._clients.get(loop)
            if client is None:
                transport = self._config.transport
                if transport is not None and not isinstance(transport, httpx.AsyncBaseTransport):
                    raise TypeError("transport must be an httpx.AsyncBaseTransport")
                client = httpx.AsyncClient(transport=transport, **client_options(self._config))
                self._clients[loop] = client
            return client

    async def close(self) -> None:
        """Close every connection of the running loop, and forget those of others. Calls that are under way fail."""
        self._closed = True
        client = self._clients.pop(asyncio.get_running_loop(), None)
        self._clients.clear()
        if client is not None and self._pid == os.getpid():
            await client.aclose()


async def run(connections: Connections, config: Config, call: Call[T], deadline: float | None) -> T:
    """Answer a call within `deadline` seconds, or the client's timeout where that is None.

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
            await asyncio.sleep(step.seconds)
        else:
            await _send(connections.get(), config, call, attempts, step)


async def _send(client: httpx.AsyncClient, config: Config, call: Call[T], attempts: Attempts[T], step: Send) -> None:
    import httpx

    from metareward_client._http import TimeLeft, answer_of, broken, request_of

    request = request_of(client, config, call, step)
    left: TimeLeft = request.extensions["timeout"]
    try:
        response = await client.send(request, stream=True)
        try:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if left.over:
                    attempts.broke(Broken.OUT_OF_TIME, "")
                    return
        finally:
            await response.aclose()
    except (httpx.TransportError, httpx.DecodingError) as error:
        attempts.broke(*broken(error))
    else:
        attempts.answered(answer_of(response, bytes(body)))
