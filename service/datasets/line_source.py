"""Lines of a file of any size, in constant memory; and proof that what was read before is still what it was."""

from __future__ import annotations

import gzip
import hashlib
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Protocol

from service.errors import ConfigurationError

STREAM: Final = Path("-")
_PIECE: Final = 1 << 20
# Of a line that is too long so much is kept, to be shown.
_KEPT: Final = 4096


@dataclass(frozen=True, slots=True)
class Mark:
    """A place between two lines.

    Attributes:
        bytes: Bytes before it, decompressed.
        lines: Lines before it.
        digest: Of these bytes (BLAKE2b, 16 bytes, hexadecimal).
    """

    bytes: int
    lines: int
    digest: str

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Mark:
        """The inverse of `dataclasses.asdict`."""
        return cls(int(data["bytes"]), int(data["lines"]), str(data["digest"]))


class _Digest(Protocol):
    def copy(self) -> _Digest: ...
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Line:
    """One line.

    Attributes:
        number: Counted from 1.
        data: Without the line feed; of one that is too long only the beginning.
        too_long: It has more bytes than allowed.
    """

    number: int
    data: bytes
    too_long: bool
    _end: int
    _digest: _Digest

    @property
    def mark(self) -> Mark:
        """The place behind it."""
        return Mark(self._end, self.number, self._digest.hexdigest())


class LineSource:
    """A file of lines, gzipped where it is named *.gz, or standard input for `-`. Use it as a context manager."""

    def __init__(self, flag: str, path: Path, *, max_bytes: int) -> None:
        """Open `path`.

        Args:
            flag: Names it in errors.
            path: The file.
            max_bytes: Of a line; memory holds one at a time.

        Raises:
            ConfigurationError: It cannot be read.
        """
        self._name = f"{flag} {path}"
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lines = 0
        self._digest: _Digest = hashlib.blake2b(digest_size=16)
        self.size: int | None = None
        """Bytes on disk; None where nobody knows."""
        try:
            self._raw: BinaryIO = sys.stdin.buffer if path == STREAM else path.open("rb")
            if path != STREAM and path.is_file():
                self.size = path.stat().st_size
        except OSError as error:
            raise ConfigurationError(f"{self._name} cannot be read: {error.strerror}") from error
        compressed = path.suffix == ".gz"
        self._file: BinaryIO = gzip.GzipFile(fileobj=self._raw, mode="rb") if compressed else self._raw  # type: ignore[assignment]
        self._tells = compressed and self.size is not None

    @property
    def position(self) -> int:
        """Bytes read so far, of `size`."""
        return self._raw.tell() if self._tells else self._bytes

    def skip(self, mark: Mark) -> None:
        """Go to `mark`, the first thing of all, if all before it is what it was.

        Raises:
            ConfigurationError: It is not, or cannot be read.
        """
        left = mark.bytes
        while left and (piece := self._read(min(left, _PIECE))):
            self._digest.update(piece)
            left -= len(piece)
        if left or self._digest.hexdigest() != mark.digest:
            raise ConfigurationError(
                f"{self._name}: the first {mark.lines} lines are not those of the run before; give the same file, or "
                "--fresh to begin anew"
            )
        self._bytes, self._lines = mark.bytes, mark.lines

    def __iter__(self) -> Iterator[Line]:
        while data := self._readline():
            self._take(data)
            too_long = len(data) > self._max_bytes and not data.endswith(b"\n")
            if too_long:
                rest, data = data, data[:_KEPT]
                while rest and not rest.endswith(b"\n"):
                    rest = self._readline()
                    self._take(rest)
            self._lines += 1
            yield Line(self._lines, data.removesuffix(b"\n"), too_long, self._bytes, self._digest.copy())

    def _take(self, data: bytes) -> None:
        self._digest.update(data)
        self._bytes += len(data)

    def _readline(self) -> bytes:
        return self._safely(lambda: self._file.readline(self._max_bytes + 1))

    def _read(self, size: int) -> bytes:
        return self._safely(lambda: self._file.read(size))

    def _safely(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ConfigurationError(
                f"{self._name}: the gzip file is damaged or cut off after {self._lines} lines"
            ) from error
        except OSError as error:
            raise ConfigurationError(f"{self._name} cannot be read: {error.strerror}") from error

    def __enter__(self) -> LineSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._raw is not sys.stdin.buffer:
            self._file.close()
            self._raw.close()
