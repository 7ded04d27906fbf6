"""Outputs that go on where they were."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.datasets.line_source import Mark
from service.datasets.resumable_output import ResumableOutput, beside
from service.datasets.whole_file import whole_file
from service.errors import ConfigurationError

PLAN = {"checkpoint": "c", "--users": "u"}


def opened(path: Path, *, fresh: bool = False, **plan: str) -> ResumableOutput:
    return ResumableOutput("--output", path, plan={**PLAN, **plan}, fresh=fresh)


def content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
@pytest.mark.parametrize("torn", [b'{"torn', b"\0\0\0", b""])
def test_what_no_state_speaks_of_is_cut(tmp_path: Path, name: str, torn: bytes) -> None:
    path = tmp_path / name
    with opened(path) as out:
        assert out.mark is None
        out.write(b"one\n")
        out.reject(b"bad one\n")
        out.sync(Mark(10, 1, "d"), {"rows": 1})
        out.write(b"two\n" * 100_000)
        out.reject(b"bad two\n")
    assert content(path) == b"one\n"
    with path.open("ab") as file:
        file.write(torn)  # as a kill or a power cut leaves it
    with opened(path) as out:
        assert (out.mark, out.counts) == (Mark(10, 1, "d"), {"rows": 1})
        out.write(b"three\n")
        out.sync(Mark(20, 2, "e"), {"rows": 2})
    assert content(path) == b"one\nthree\n"
    assert beside(path, "rejected.jsonl").read_bytes() == b"bad one\n"


def test_only_the_same_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path) as out:
        out.write(b"one\n")
        out.reject(b"bad\n")
        out.sync(Mark(10, 1, "d"), {})
    with pytest.raises(ConfigurationError, match="begun with another checkpoint, another --users: give what was"):
        opened(path, checkpoint="other", **{"--users": "others"})
    with opened(path) as out:
        out.settle("checkpoint", "c")
        with pytest.raises(ConfigurationError, match="begun with another checkpoint: give"):
            out.settle("checkpoint", "other")
    with opened(path), pytest.raises(ConfigurationError, match="another process is writing"):
        opened(path)
    with opened(path, fresh=True, checkpoint="other") as out:
        assert (out.mark, path.read_bytes()) == (None, b"")
        assert beside(path, "rejected.jsonl").read_bytes() == b""
    path.write_bytes(b"")
    beside(path, "state.json").write_text(json.dumps({"format": 99, "plan": PLAN}))
    with pytest.raises(ConfigurationError, match="not readable as a state: --fresh"):
        opened(path)


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("precious\n")
    with pytest.raises(ConfigurationError, match="is there already"):
        opened(path)
    assert path.read_text() == "precious\n"
    with opened(path, fresh=True) as out:
        out.write(b"one\n" * 10)
        out.sync(Mark(10, 1, "d"), {})
    path.write_bytes(b"one\n")
    with pytest.raises(ConfigurationError, match="was shortened since"):
        opened(path)


@pytest.fixture
def small_disk() -> Iterator[int]:
    """Files have room for so many bytes."""
    room = 100_000
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    yield room
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_what_a_full_disk_did_not_take_is_never_said_to_be_there(tmp_path: Path, small_disk: int, name: str) -> None:
    path = tmp_path / name
    with opened(path) as out:
        out.write(b"one\n")
        out.sync(Mark(10, 1, "d"), {})
        with pytest.raises(ConfigurationError, match="cannot be written: File too large"):
            out.write(random.Random(0).randbytes(10 * small_disk))
        with pytest.raises(ConfigurationError, match="cannot be written: File too large"):
            out.sync(Mark(20, 2, "e"), {})
    assert content(path) == b"one\n"
    with opened(path) as out:
        assert out.mark == Mark(10, 1, "d")


def test_the_last_bytes_of_a_gzip_member_are_not_lost_on_a_full_disk(tmp_path: Path, small_disk: int) -> None:
    data = random.Random(0).randbytes(small_disk - 30)  # with gzip's header and trailer a few bytes too many
    path = tmp_path / "out.jsonl.gz"
    with opened(path) as out:
        out.write(data)
        with pytest.raises(ConfigurationError, match="File too large"):
            out.sync(Mark(10, 1, "d"), {})
    assert path.read_bytes() == b""


@pytest.mark.parametrize("resumable", [False, True])
def test_the_state_of_what_was_replaced_is_not_gone_on_with(
    tmp_path: Path, resumable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path) as out:
        out.write(b"one\n")
        out.sync(Mark(10, 1, "d"), {})
    if resumable:  # and killed before it could say so
        monkeypatch.setattr(ResumableOutput, "_save", lambda *_: None)
    with ResumableOutput("--output", path, plan=PLAN, fresh=True, resumable=resumable) as out:
        out.write(b"something longer\n")
        out.sync(Mark(20, 2, "e"), {})
    with pytest.raises(ConfigurationError, match="is there already, and no state"):
        opened(path)


def test_a_disk_that_is_full_is_named() -> None:
    with opened(Path("/dev/full")) as out:
        out.write(b"one\n")
        with pytest.raises(ConfigurationError, match="/dev/full cannot be written: No space left"):
            out.sync(Mark(10, 1, "d"), {})


def test_a_whole_file_is_there_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    for path in (tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"):
        with contextlib.suppress(RuntimeError), whole_file("--output", path) as write:
            write(b"half")
            raise RuntimeError
        assert list(tmp_path.iterdir()) == []
        with whole_file("--output", path) as write:
            write(b"whole")
            assert not path.exists()
        assert content(path) == b"whole"
        path.unlink()
    with pytest.raises(ConfigurationError, match="cannot be written"), whole_file("-o", tmp_path / "no" / "a"):
        pass
