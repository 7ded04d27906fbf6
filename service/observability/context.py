"""Who asked: what every log line and span of one request carries, wherever in the code it is written.

The gate sets `request_id`, authentication sets `tenant` and `key_id`. A task and `asyncio.to_thread` start with a copy
of their parent's context; a thread behind `run_in_executor` does not, so hand it `in_context(work)` instead of `work`.
None of them may hold a user id, a text or a key itself.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, TypeVar

T = TypeVar("T")

# Empty where nobody asked: at start, in background work.
request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")
tenant: Final[ContextVar[str]] = ContextVar("tenant", default="")
# The public name of an API key, never the key.
key_id: Final[ContextVar[str]] = ContextVar("key_id", default="")


def in_context(work: Callable[[], T]) -> Callable[[], T]:
    """`work`, to be run by another thread on behalf of the current request."""
    context = contextvars.copy_context()
    return lambda: context.run(work)
