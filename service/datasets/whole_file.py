"""An output that is there only once it is whole."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.datasets.line_source import STREAM
from service.errors import ConfigurationError


@contextmanager
def whole_file(flag: str, path: Path) -> Iterator[Callable[[bytes], object]]:
    """Write `path`, gzipped where it is named *.gz; what stood there stays until the end, and for good where it fails.

    Args:
        flag: Names it in errors.
        path: The file; `-` is standard output, a pipe or a device is written at once.

    Yields:
        What writes bytes.

    Raises:
        ConfigurationError: It cannot be written.
    """
    if path == STREAM:
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    at_once = path.exists() and not path.is_file()
    # A name of its own: two runs side by side do not write into one file.
    partial = path if at_once else path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
                    yield file.write
            else:
                yield raw.write
            raw.flush()
            if not at_once:
                os.fsync(raw.fileno())
        if not at_once:
            partial.replace(path)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise ConfigurationError(f"{flag} {path} cannot be written: {error.strerror}") from error
    finally:
        if not at_once:
            partial.unlink(missing_ok=True)
