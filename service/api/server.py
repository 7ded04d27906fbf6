"""The HTTP server process of the REST layer."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI


class _AnnouncingServer(uvicorn.Server):
    """Calls back once it answers, not before."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def run_server(app: FastAPI, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve `app` on a bound socket until a signal; then answer what was accepted and return."""
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", log_config=None, access_log=False, server_header=False, lifespan="on"
    )
    _AnnouncingServer(config, on_ready).run(sockets=[listener])
