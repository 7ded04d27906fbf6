"""Exceptions told to a log without what callers wrote.

A traceback shows code, and code is no secret. A message may quote anything: a prompt that a tokenizer choked on, a row
that violated a constraint, a URL with a password. So a message is told only where who wrote it is known to quote
nothing; of any other exception the log has its type, its place and how long the message was.
"""

from __future__ import annotations

import traceback
from typing import Final

from service.errors import MetarewardError

# Errors of this project never echo input; torch and linear algebra see numbers only; SQLite names columns, not values
# (psycopg's messages quote rows, so of them only the SQLSTATE is told).
_QUOTE_NOTHING_MODULES: Final = ("torch", "numpy.linalg", "sqlite3")
_QUOTE_NOTHING: Final = (MetarewardError, ImportError, MemoryError)
_MAX_CHAIN: Final = 8
_MAX_FRAMES: Final = 50


def describe(error: BaseException) -> str:
    """One line: the type, and the message where it can be told."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, _QUOTE_NOTHING) or kind.__module__.startswith(_QUOTE_NOTHING_MODULES):
        return f"{name}: {error}"
    if isinstance(error, OSError):
        return f"{name}: [Errno {error.errno}] {error.strerror}" if error.strerror else name
    if sqlstate := getattr(error, "sqlstate", None):
        return f"{name}: SQLSTATE {sqlstate}"
    if not error.args:
        return name
    return f"{name}: (message of {len(_text(error))} characters withheld)"


def tell(error: BaseException) -> str:
    """The traceback of `error` and of what caused it, causes first, as Python prints it."""
    chain: list[tuple[BaseException, str]] = []
    link = ""
    current: BaseException | None = error
    while current is not None and len(chain) < _MAX_CHAIN and all(current is not seen for seen, _ in chain):
        chain.append((current, link))
        if current.__cause__ is not None:
            link = "\n\nThe above exception was the direct cause of the following exception:\n\n"
            current = current.__cause__
        else:
            link = "\n\nDuring handling of the above exception, another exception occurred:\n\n"
            current = None if current.__suppress_context__ else current.__context__
    return "".join(_traceback(told) + link for told, link in reversed(chain))


def _traceback(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__, limit=-_MAX_FRAMES))
    text = f"Traceback (most recent call last):\n{frames}{describe(error)}" if frames else describe(error)
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions[:_MAX_CHAIN]:
            text += "\n  | " + tell(inner).replace("\n", "\n  | ")
    return text


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception of somebody else's, whose message cannot even be made
        return ""
