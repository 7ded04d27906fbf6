"""Lines of files of any size."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from service.datasets.line_source import LineSource, Mark
from service.errors import ConfigurationError


def source(path: Path, max_bytes: int = 10) -> LineSource:
    return LineSource("--input", path, max_bytes=max_bytes)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_reading_goes_on_behind_any_line(tmp_path: Path, name: str) -> None:
    data = b"one\n\ntwo\nmuch too long, this one is\nthree\nlast without end"[:-8]
    file = write(tmp_path / name, data)
    with source(file) as whole:
        lines = list(whole)
    shown = [(line.number, line.data, line.too_long) for line in lines]
    assert shown[:3] == [(1, b"one", False), (2, b"", False), (3, b"two", False)]
    assert (shown[3][0], shown[3][1][:10], shown[3][2]) == (4, b"much too l", True)
    assert shown[4] == (5, b"three", False)
    assert lines[-1].mark.bytes == len(data)
    for i, line in enumerate(lines):
        with source(file) as rest:
            rest.skip(line.mark)
            assert [(each.number, each.data, each.mark) for each in rest] == [
                (each.number, each.data, each.mark) for each in lines[i + 1 :]
            ]


def test_a_line_of_the_longest_length_is_not_too_long(tmp_path: Path) -> None:
    with source(write(tmp_path / "rows", b"0123456789\n01234567890\n0123456789")) as lines:
        assert [line.too_long for line in lines] == [False, True, False]


def test_a_changed_beginning_is_no_place_to_go_on_and_a_changed_rest_is(tmp_path: Path) -> None:
    file = write(tmp_path / "rows", b"one\ntwo\nthree\n")
    with source(file) as lines:
        mark = [line.mark for line in lines][1]
    write(file, b"one\ntwo\nother\nmore\n")
    with source(file) as lines:
        lines.skip(mark)
        assert [line.data for line in lines] == [b"other", b"more"]
    for data in (b"one\ntwO\nthree\n", b"one\n"):
        write(file, data)
        with source(file) as lines, pytest.raises(ConfigurationError, match="the first 2 lines are not those"):
            lines.skip(mark)
    assert mark == Mark.from_json({"bytes": 8, "lines": 2, "digest": mark.digest}) != replace(mark, lines=3)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--input .*missing cannot be read: No such file"):
        source(tmp_path / "missing")
    torn = tmp_path / "torn.gz"
    torn.write_bytes(gzip.compress(b"row\n" * 1000)[:-10])
    with source(torn) as lines, pytest.raises(ConfigurationError, match="damaged or cut off"):
        list(lines)
