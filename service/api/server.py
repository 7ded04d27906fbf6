"""The HTTP server process, from the first answer to the last."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from service.api.bounded_protocol import BoundedProtocol
from service.operations.lifecycle import Lifecycle

logger = logging.getLogger(__name__)

# Longer than clients (httpx: 5 s) and load balancers (60 s) keep an idle connection: the one who sends must close it
# first, or a request goes into a connection that is just being closed.
KEEP_ALIVE_S = 75


class _DrainingServer(uvicorn.Server):
    """Calls back once it answers, not before; and ends in three steps.

    A first signal makes /ready say no while requests are still answered, for `drain_delay_s`: load balancers notice,
    and clients are told to close their connections. Then nothing new is accepted and what is in flight is finished,
    within the time that uvicorn was given. A second signal skips the waiting.
    """

    def __init__(
        self, config: uvicorn.Config, on_ready: Callable[[], None], lifecycle: Lifecycle, drain_delay_s: float
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._lifecycle = lifecycle
        self._drain_delay_s = drain_delay_s
        self._serve_until: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._lifecycle.draining:
            self._drain_delay_s = 0.0
            self.force_exit = True
            return
        self._captured_signals.append(sig)
        self._lifecycle.draining = True
        logger.info(
            "%s: draining; %d requests in flight, listening for another %g s",
            signal.Signals(sig).name,
            self._lifecycle.requests,
            self._drain_delay_s,
        )

    async def on_tick(self, counter: int) -> bool:
        if self._lifecycle.draining and not self.should_exit:
            now = asyncio.get_running_loop().time()
            if self._serve_until is None:
                self._serve_until = now + self._drain_delay_s
            self.should_exit = self.force_exit or now >= self._serve_until
        return await super().on_tick(counter)


def run_server(
    app: Callable[..., Any],
    listener: socket.socket,
    on_ready: Callable[[], None],
    lifecycle: Lifecycle,
    *,
    drain_delay_s: float,
    drain_timeout_s: float,
) -> None:
    """Serve `app` on a bound socket until a signal; then drain and return.

    Args:
        app: An ASGI application; its lifespan runs around everything.
        listener: Bound, not yet listening.
        on_ready: Called once requests are answered.
        lifecycle: Learns of the draining.
        drain_delay_s: How long to serve on after the signal.
        drain_timeout_s: How long requests in flight may take after that; then they get 503.
    """
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=BoundedProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(drain_timeout_s)),
    )
    _DrainingServer(config, on_ready, lifecycle, drain_delay_s).run(sockets=[listener])
