"""The thin loop that drives a call's attempts, blocking."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

from metareward_client._attempts import Attempts, Broken, Done, Send
from metareward_client._call import Call
from metareward_client._config import Config

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


class Connections:
    """The HTTPX client, made when it is first needed."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._closed = False

    def get(self) -> httpx.Client:
        """The client.

        Raises:
            RuntimeError: It is closed.
        """
        import httpx

        from metareward_client._http import client_options

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
        with self._lock:
            self._closed = True
            client, self._client = self._client, None
        if client is not None:
            client.close()


def run(
    connections: Connections, config: Config, call: Call[T], until: float, stop: threading.Event | None = None
) -> T:
    """Answer a call.

    Args:
        connections: Where it is sent.
        config: The client's.
        call: What is asked.
        until: When it must be done, on the monotonic clock.
        stop: Once it is set, nothing more is sent.

    Raises:
        MetarewardError: See the tree in `errors`.
        CancelledError: `stop` was set.
    """
    attempts = Attempts(call, until, max_retries=config.max_retries)
    while True:
        step = attempts.next(time.monotonic())
        if isinstance(step, Done):
            return step.value
        if stop is not None and stop.is_set():
            raise CancelledError
        if isinstance(step, Send):
            _send(connections.get(), config, call, attempts, step)
        elif stop is None:
            time.sleep(step.seconds)
        else:
            stop.wait(step.seconds)


def run_all(connections: Connections, config: Config, calls: Sequence[Call[T]], until: float) -> list[T]:
    """Answer calls, `max_concurrency` at a time; the first that fails ends it.

    Those that are under way then are left to themselves; nothing more is sent.

    Raises:
        MetarewardError: What the first failed with.
    """
    if len(calls) <= 1:
        return [run(connections, config, call, until) for call in calls]
    stop = threading.Event()
    threads = ThreadPoolExecutor(min(config.max_concurrency, len(calls)), thread_name_prefix="metareward-score")
    try:
        futures = [threads.submit(run, connections, config, call, until, stop) for call in calls]
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
        return [future.result() for future in futures]
    finally:
        stop.set()
        threads.shutdown(wait=False, cancel_futures=True)


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
