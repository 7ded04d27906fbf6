"""Rows of a JSON lines file, and their fields: every fault is a `BadRow` that names the field."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from service.datasets.bad_rows import BadRows
from service.errors import ConfigurationError

Row = TypeVar("Row")


class BadRow(Exception):
    """What is wrong with a row: begins with the field, never echoes the row's text."""


def read_json_rows(file: Path, bad: BadRows, read: Callable[[dict[str, Any]], Row]) -> Iterator[tuple[str, Row]]:
    """Read one JSON object a line; blank lines are passed over.

    Args:
        file: UTF-8, with or without a byte order mark.
        bad: Is told of every bad row, by line.
        read: Makes a row of an object, or raises `BadRow`.

    Yields:
        Where the row stands (`line 17`), and the row; bad rows are left out.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    try:
        with file.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if not text.strip():
                    continue
                place = f"line {number}"
                try:
                    row = read(json_object(text))
                except BadRow as error:
                    bad.add(place, str(error))
                    continue
                yield place, row
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error


def json_object(line: bytes, *, strict: bool = False) -> dict[str, Any]:
    """The JSON object that a line is.

    `strict` also refuses what Python reads or makes of it and could not write as JSON: NaN, Infinity, 1e999.

    Raises:
        BadRow: It is none.
    """
    try:
        text = line.decode("utf-8")
        row = json.loads(text, parse_constant=_no_number, parse_float=_finite) if strict else json.loads(text)
    except UnicodeDecodeError:
        raise BadRow("not UTF-8: save the file as UTF-8") from None
    except (ValueError, RecursionError):
        raise BadRow("not a JSON object on one line") from None
    if not isinstance(row, dict):
        raise BadRow("not a JSON object on one line")
    return row


def _no_number(_: str) -> NoReturn:
    raise BadRow("NaN and Infinity are no JSON: write null")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise BadRow("a number is larger than 64 bits can hold: write it as text")
    return value


def unicode(value: str, field: str) -> str:
    """`value`, which can be written as UTF-8.

    Raises:
        BadRow: It holds half of a surrogate pair.
    """
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"{field} holds half of a surrogate pair: write the character itself") from None
    return value


def required(row: Mapping[str, Any], name: str, where: str = "") -> Any:
    """The value of a field that must be there.

    Args:
        row: The object.
        name: The field.
        where: Path of the object in its row, such as `info.`.

    Raises:
        BadRow: It is missing.
    """
    if name not in row:
        raise BadRow(f"{where}{name} is missing")
    return row[name]


def text_field(row: Mapping[str, Any], name: str, where: str = "") -> str:
    """A field that must be text; it may be empty.

    Raises:
        BadRow: It is missing, no text, or holds half of a surrogate pair.
    """
    value = required(row, name, where)
    if not isinstance(value, str):
        raise BadRow(f"{where}{name} must be text")
    return unicode(value, f"{where}{name}")


def id_field(row: Mapping[str, Any], name: str) -> str:
    """A field that names somebody or something: text that is not empty.

    Raises:
        BadRow: It is missing or anything else.
    """
    value = text_field(row, name)
    if not value.strip():
        raise BadRow(f"{name} must not be empty")
    return value


def count_field(row: Mapping[str, Any], name: str, where: str = "") -> int:
    """A field that must be a whole number, 0 or more.

    Raises:
        BadRow: It is missing or anything else.
    """
    value = required(row, name, where)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadRow(f"{where}{name} must be a whole number, 0 or more")
    return value


def list_field(row: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A field that must be a list of objects.

    Raises:
        BadRow: It is missing or anything else.
    """
    value = required(row, name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise BadRow(f"{name} must be a list of objects")
    return value
