"""How a client is set up: what it is picklable by."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

    import httpx

DEFAULT_URL = "http://127.0.0.1:8000"

_URL = re.compile(r"https?://[^/?#\s]+[^?#\s]*")
_VISIBLE = re.compile(r"[!-~]+")


def user_agent() -> str:
    """Names this package and the Python that runs it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("metareward-client")
    except PackageNotFoundError:  # run from a checkout that is not installed
        own = "0"
    return f"metareward-client/{own} Python/{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Config:
    """All that a client was made with; see `Client` for what each means.

    Raises:
        ValueError: A setting is impossible.
    """

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    max_retries: int | None = None
    max_connections: int = 64
    max_concurrency: int = 8
    batch_size: int = 256
    batch_window_s: float = 0.002
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    verify: bool | ssl.SSLContext = True
    transport: httpx.BaseTransport | httpx.AsyncBaseTransport | None = None

    def __post_init__(self) -> None:
        url = self.base_url or os.environ.get("METAREWARD_URL") or DEFAULT_URL
        key = os.environ.get("METAREWARD_API_KEY") if self.api_key is None else self.api_key
        if not _URL.fullmatch(url):
            raise ValueError(
                "base_url (METAREWARD_URL) must be like http://127.0.0.1:8000 or https://host/prefix, without a query"
            )
        if key and not _VISIBLE.fullmatch(key):
            raise ValueError("api_key must be printable ASCII without spaces; is there a line break behind it?")
        if not self.timeout > 0:
            raise ValueError("timeout must be a number of seconds above 0")
        if self.max_retries is not None and self.max_retries < 0:
            raise ValueError("max_retries must be 0 or more, or None for as many as there is time for")
        for name in ("max_connections", "max_concurrency", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not 0 <= self.batch_window_s < 60:
            raise ValueError("batch_window_s must be between 0 and 60 seconds")
        object.__setattr__(self, "base_url", url.rstrip("/"))
        object.__setattr__(self, "api_key", key or None)

    def until(self, deadline: float | None) -> float:
        """When a call must be done that may take `deadline` seconds from now, on the monotonic clock.

        Raises:
            ValueError: It may take no time at all.
        """
        seconds = self.timeout if deadline is None else deadline
        if not seconds > 0:
            raise ValueError("deadline must be a number of seconds above 0")
        return time.monotonic() + seconds

    def request_headers(self) -> dict[str, str]:
        """Headers of every request."""
        headers = {"User-Agent": user_agent(), "Accept": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers | dict(self.headers or {})
