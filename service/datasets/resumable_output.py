"""An output of lines that grows for hours, and goes on where it was after a kill or a power cut.

Beside the output stands its state: what run this is, how far the input was read, and how long the files were then. It
is replaced in one step, after what it speaks of is on the disk. Whoever goes on cuts the files to these lengths, so a
torn line, or one that the disk never got, is not seen again.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

from service.datasets.line_source import STREAM, Mark
from service.errors import ConfigurationError

_FORMAT: Final = 1
_FLUSH_BYTES: Final = 1 << 18
# Quick enough for an engine to remain what is waited for.
_GZIP_LEVEL: Final = 4
# zlib's number for its largest window in gzip's format.
_GZIP_FORMAT: Final = 31


def is_stream(path: Path) -> bool:
    """Whether nothing that is written there can be cut or read again: `-`, a pipe, a device."""
    return path == STREAM or (path.exists() and not path.is_file())


def beside(output: Path, what: str) -> Path:
    """The file that accompanies an output."""
    return output.with_name(f"{output.name}.{what}")


class GrowingFile:
    """A file that grows by whole lines, gzipped where it is named *.gz: a member of its own from sync to sync."""

    def __init__(self, flag: str, path: Path) -> None:
        """Open `path`, made where there is none, and keep other processes away; nothing of it is cut yet.

        Raises:
            ConfigurationError: It cannot be written, or another process writes it.
        """
        self._name = f"{flag} {path}"
        self._path = path
        self._waiting = bytearray()
        self._member: zlib._Compress | None = None
        self._zipped = path.suffix == ".gz"
        self._stream = is_stream(path)
        self._failed: Exception | None = None
        try:
            self._raw: BinaryIO = sys.stdout.buffer if path == STREAM else path.open("ab", buffering=0)
            if not self._stream:
                self._lock()
        except OSError as error:
            raise ConfigurationError(f"{self._name} cannot be written: {error.strerror}") from error
        self.length = 0 if self._stream else os.fstat(self._raw.fileno()).st_size
        """Bytes, of which the last `sync` said that they are on the disk."""

    def cut(self, length: int) -> None:
        """Go on behind `length` bytes.

        Raises:
            ConfigurationError: There are fewer, or it cannot be written.
        """
        if self._stream:
            return
        if self.length < length:
            raise ConfigurationError(f"{self._name} was shortened since; --fresh begins anew")
        try:
            self._raw.truncate(length)
        except OSError as error:
            raise self._failure(error) from error
        self.length = length

    def _lock(self) -> None:
        try:
            fcntl.flock(self._raw, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(f"another process is writing {self._path}: wait for it to end") from error

    def write(self, lines: bytes) -> None:
        """Append whole lines, soon."""
        self._waiting += lines
        if len(self._waiting) >= _FLUSH_BYTES:
            self._flush()

    def sync(self) -> None:
        """Return once everything is on the disk.

        Raises:
            ConfigurationError: It is not, or something before it is not: a file that failed once is not written on.
        """
        self._flush()
        try:
            if self._member is not None:
                member, self._member = self._member, None
                self._put(member.flush())
            if self._stream:
                self._raw.flush()
            else:
                os.fsync(self._raw.fileno())
                self.length = os.fstat(self._raw.fileno()).st_size
        except OSError as error:
            raise self._failure(error) from error

    def _flush(self) -> None:
        if self._failed is not None:
            raise self._failed
        data, self._waiting = self._waiting, bytearray()
        if not data:
            return
        try:
            if not self._zipped:
                self._put(data)
                return
            if self._member is None:
                self._member = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_FORMAT)
            self._put(self._member.compress(data))
        except OSError as error:
            raise self._failure(error) from error

    def _put(self, data: bytes | bytearray) -> None:
        # A disk that becomes full takes a part, and refuses only the next one.
        view = memoryview(data)
        while view:
            view = view[self._raw.write(view) :]

    def _failure(self, error: OSError) -> Exception:
        # What was waiting is gone: nobody may be told later that all is on the disk.
        self._failed = (
            error
            if isinstance(error, BrokenPipeError)
            else ConfigurationError(f"{self._name} cannot be written: {error.strerror}; run the same command to go on")
        )
        return self._failed

    def close(self) -> None:
        """Cut what no `sync` has spoken of, and let go."""
        self._waiting.clear()
        if self._path == STREAM:
            return
        if not self._stream:
            os.ftruncate(self._raw.fileno(), self.length)
        self._raw.close()


class ResumableOutput:
    """An output, what was set aside (`OUTPUT.rejected.jsonl`), and their state (`OUTPUT.state.json`).

    Use it as a context manager: what is not behind a `sync` when it is left is cut.

    Attributes:
        mark: Where in the input to go on; None: at its beginning.
        counts: Figures that the earlier run had reached there.
    """

    def __init__(self, flag: str, path: Path, *, plan: Mapping[str, str], fresh: bool, resumable: bool = True) -> None:
        """Open `path`: new, or begun by a run of the same plan.

        Args:
            flag: Names it in errors.
            path: The output.
            plan: What must be the same to go on: names as a person knows them, and digests or ids; `settle` adds more.
            fresh: Replace what is there.
            resumable: Whether the input can be read again; else no state is kept.

        Raises:
            ConfigurationError: Something else is there, the plan is another one, another process writes there, or it
                cannot be written.
        """
        self._name = f"{flag} {path}"
        self._plan = dict(plan)
        self._stream = is_stream(path)
        self._state = None if self._stream or not resumable else beside(path, "state.json")
        self._rejected_path = None if self._stream else beside(path, "rejected.jsonl")
        self._rejected: GrowingFile | None = None
        self.mark: Mark | None = None
        self.counts: dict[str, int] = {}
        self._output = GrowingFile(flag, path)
        try:
            # Only now: until the file was ours, another run may have moved its state.
            lengths = (0, 0) if self._stream or fresh else self._agree()
            if lengths == (0, 0) and not self._stream:
                # Were this killed between cutting and saving, an old state would speak of a new file.
                beside(path, "state.json").unlink(missing_ok=True)
            self._output.cut(lengths[0])
            if self._rejected_path is not None and (lengths[1] or self._rejected_path.exists()):
                self._rejected = GrowingFile(flag, self._rejected_path)
                self._rejected.cut(lengths[1])
            self._save(self.mark or Mark(0, 0, ""), self.counts)
        except BaseException:
            self.close()
            raise

    def _agree(self) -> tuple[int, int]:
        """Lengths of both files where an earlier run is gone on with."""
        state: dict[str, Any] | None = None
        if self._state is not None and self._state.exists():
            try:
                state = json.loads(self._state.read_bytes())
                known = dict(state["plan"])
                if state["format"] != _FORMAT:
                    raise ValueError("of another version")
                mark, counts = Mark.from_json(state["input"]), dict(state["counts"])
                lengths = int(state["output_bytes"]), int(state["rejected_bytes"])
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise ConfigurationError(f"{self._state} is not readable as a state: --fresh begins anew") from error
        if state is None:
            if self._output.length:
                raise ConfigurationError(
                    f"{self._name} is there already, and no state beside it says how to go on: give another path, or "
                    "--fresh to replace it"
                )
            return 0, 0
        self._require([name for name, value in self._plan.items() if known.get(name, value) != value])
        self._plan = {**known, **self._plan}
        if mark.bytes:
            self.mark, self.counts = mark, counts
        return lengths

    def _require(self, other: Sequence[str]) -> None:
        if other:
            raise ConfigurationError(
                f"{self._name} was begun with another {', another '.join(other)}: give what was given then, or --fresh "
                "to begin anew"
            )

    def settle(self, name: str, value: str) -> None:
        """Add to the plan what was not known at first.

        Raises:
            ConfigurationError: The earlier run had another one.
        """
        self._require([name] if self._plan.get(name, value) != value else [])
        self._plan[name] = value

    def write(self, lines: bytes) -> None:
        """Append whole lines."""
        self._output.write(lines)

    def reject(self, line: bytes) -> None:
        """Set a line aside."""
        if self._rejected_path is None:
            return
        if self._rejected is None:
            self._rejected = GrowingFile("--output", self._rejected_path)
        self._rejected.write(line)

    def sync(self, mark: Mark, counts: Mapping[str, int]) -> None:
        """Return once a run that is killed from now on would go on at `mark`, with all that was written so far."""
        self._output.sync()
        if self._rejected is not None:
            self._rejected.sync()
        self._save(mark, counts)

    def _save(self, mark: Mark, counts: Mapping[str, int]) -> None:
        if self._state is None:
            return
        state = {
            "format": _FORMAT,
            "plan": self._plan,
            "input": asdict(mark),
            "output_bytes": self._output.length,
            "rejected_bytes": 0 if self._rejected is None else self._rejected.length,
            "counts": dict(counts),
        }
        replace_file(self._state, json.dumps(state, indent=1).encode())

    def __enter__(self) -> ResumableOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cut what no `sync` has spoken of, and let go."""
        self._output.close()
        if self._rejected is not None:
            self._rejected.close()


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file in one step.

    Raises:
        ConfigurationError: It cannot be written.
    """
    partial = beside(path, "partial")
    try:
        with partial.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
