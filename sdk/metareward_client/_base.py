"""What both clients have: how they are set up, copied and shown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from metareward_client._config import Config
from metareward_client.answers import Limits

if TYPE_CHECKING:
    import ssl

    import httpx


class BaseClient:
    """A client before it does anything; see `Client`."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_retries: int | None = None,
        max_connections: int = 64,
        max_concurrency: int = 8,
        batch_size: int = 256,
        batch_window_s: float = 0.002,
        headers: Mapping[str, str] | None = None,
        verify: bool | ssl.SSLContext = True,
        transport: httpx.BaseTransport | httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._set_up(
            Config(
                base_url,
                api_key,
                timeout,
                max_retries,
                max_connections,
                max_concurrency,
                batch_size,
                batch_window_s,
                headers,
                verify,
                transport,
            )
        )

    def _set_up(self, config: Config) -> None:
        self._config = config
        self._pid = os.getpid()
        self._limits: Limits | None = None

    def _in_this_process(self) -> None:
        """Behind a fork, begin anew: connections and threads are the parent's, and a lock may be held for ever."""
        if self._pid != os.getpid():
            self._set_up(self._config)

    def __getstate__(self) -> Config:
        return self._config

    def __setstate__(self, config: Config) -> None:
        self._set_up(config)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._config.base_url!r})"
