"""How this process writes its log: one line a record on stderr, as text for people or JSON for machines.

Every line of a request carries its id, tenant and key id. No line carries a text, a key or a password: messages are
written without them, and exceptions are told by `redaction`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Literal, TextIO, TypeGuard

import orjson

from service.observability import context
from service.observability.redaction import describe, tell

LogFormat = Literal["auto", "text", "json"]

# Libraries that tell of every step. What they say of failures is heard.
_CHATTY: Final = ("alembic", "asyncio", "httpcore", "httpx", "opentelemetry", "uvicorn")
_STANDARD: Final = frozenset(
    (*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "color_message")
)
# asyncio goes on with the reprs of tasks and arguments, and they quote anything.
_PLAIN_WORDS: Final = re.compile(r"[A-Za-z0-9_.,' -]*")


def configure_logging(level: str, log_format: LogFormat, stream: TextIO | None = None) -> None:
    """Send every record of this process at `level` or above to `stream` (stderr).

    Args:
        level: debug, info, warning or error. Debug is for this project's own code: libraries would tell headers.
        log_format: auto is text where `stream` is a terminal, else JSON lines.
        stream: Where to.
    """
    stream = sys.stderr if stream is None else stream
    as_text = log_format == "text" or (log_format == "auto" and stream.isatty())
    handler = _Handler(stream)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(number, logging.INFO), handlers=[handler], force=True)
    logging.getLogger("service").setLevel(number)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    # It warns of every request that is no HTTP or wants a web socket: two lines for whoever sends sixty bytes.
    logging.getLogger("uvicorn.error").setLevel(max(number, logging.ERROR))
    logging.captureWarnings(True)
    # Python would print these to stderr, message and all.
    sys.excepthook = _process_dies
    threading.excepthook = _thread_died
    sys.unraisablehook = _could_not_be_raised


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say which call of the logger is at fault; the standard answer prints its arguments."""
        if not isinstance(sys.exc_info()[1], OSError):
            sys.stderr.write(f"a log record could not be written: {record.pathname}:{record.lineno}\n")


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00,000 INFO    service.runtime: message key=value`, in local time."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback below it."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        fields = {**_who(), **_extra(record)}
        said = "".join(f" {name}={_plain(value)}" for name, value in fields.items())
        line = f"{when},{int(record.msecs):03d} {record.levelname:<7} {record.name}: {_message(record)}{said}"
        return line if (error := _exception(record)) is None else f"{line}\n{tell(error)}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: timestamp (RFC 3339, UTC), level, logger, message, who asked, and the `extra` fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message and the traceback hold."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "timestamp": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **_who(),
            **_extra(record),
        }
        if (error := _exception(record)) is not None:
            line["exception"] = tell(error)
        return _json(line)


def _who() -> dict[str, str]:
    asked = {
        "request_id": context.request_id.get(),
        "tenant": context.tenant.get(),
        "key_id": context.key_id.get(),
    }
    return {name: value for name, value in asked.items() if value}


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {
        name: describe(value) if isinstance(value, BaseException) else value
        for name, value in vars(record).items()
        if name not in _STANDARD
    }


def _message(record: logging.LogRecord) -> str:
    args = record.args
    if isinstance(args, tuple):
        record.args = tuple(describe(arg) if _foreign(arg) else arg for arg in args)
    elif isinstance(args, Mapping):
        record.args = {name: describe(arg) if _foreign(arg) else arg for name, arg in args.items()}
    message = record.getMessage()
    if record.name == "asyncio" and (words := _PLAIN_WORDS.match(message)) is not None:
        return words[0].strip()
    return message


def _foreign(value: object) -> TypeGuard[BaseException]:
    """Whether this is an exception that this project did not write."""
    return isinstance(value, BaseException) and not type(value).__module__.startswith("service.")


def _exception(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if record.exc_info else None


def _plain(value: object) -> str:
    if isinstance(value, Mapping) and value:
        return ",".join(f"{name}:{_plain(inner)}" for name, inner in value.items())
    text = value if isinstance(value, str) else _json(value)
    # No field can end the line or look like another field.
    return text if re.fullmatch(r"[^\s\"=]+", text) else _json(text)


def _json(value: object) -> str:
    try:
        return orjson.dumps(value, default=_unknown, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # half a surrogate pair, or more than 64 bits: the standard library writes these
        return json.dumps(value, default=_unknown)


def _unknown(value: object) -> str:
    """A thing that is no JSON: its type, because its repr may quote anything."""
    return f"<{type(value).__name__}>"


def _process_dies(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger(__name__).critical("the process ends by an error", exc_info=error)


def _thread_died(died: threading.ExceptHookArgs) -> None:
    if died.exc_value is not None and not isinstance(died.exc_value, SystemExit):
        name = died.thread.name if died.thread is not None else "?"
        logging.getLogger(__name__).critical("the thread %s died", name, exc_info=died.exc_value)


def _could_not_be_raised(failure: sys.UnraisableHookArgs) -> None:
    if failure.exc_value is not None:
        logging.getLogger(__name__).error("an exception where none can be raised", exc_info=failure.exc_value)
