"""Whether anything of a user is left: every column of every table, every key and value of a Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis
from sqlalchemy import MetaData, select

from service.store import Database

Needle = str | bytes | int


def traces(database: Database, *needles: Needle) -> list[str]:
    """Where the needles occur, as ``table.column``: a text or bytes within any value, a number as an incarnation."""
    return sorted(
        {
            f"{table}.{column}"
            for table, column, value in _values(database)
            for needle in needles
            if _occurs(needle, column, value)
        }
    )


def redis_traces(url: str, *needles: str | bytes) -> list[str]:
    """Keys of a Redis in whose name or value, a string or a hash, a needle occurs."""
    with redis.Redis.from_url(url) as client:
        entries = [(key, _value(client, key)) for key in client.scan_iter(count=1000)]
    wanted = [needle.encode() if isinstance(needle, str) else needle for needle in needles]
    return sorted(repr(key) for key, value in entries for needle in wanted if needle in key or needle in value)


def _value(client: redis.Redis, key: bytes) -> bytes:
    # DUMP would compress long values.
    if client.type(key) == b"hash":
        return b"\n".join(name + b"\n" + value for name, value in client.hgetall(key).items())
    return client.get(key) or b""


def _values(database: Database) -> Iterator[tuple[str, str, Any]]:
    # As the database has them, so that a table that the models lack is searched too.
    metadata = MetaData()
    metadata.reflect(database.engine)
    with database.engine.connect() as connection:
        for table in metadata.sorted_tables:
            for row in connection.execute(select(table)).mappings():
                yield from ((table.name, str(column), value) for column, value in row.items())


def _occurs(needle: Needle, column: str, value: Any) -> bool:
    if isinstance(needle, int):
        return column == "incarnation" and value == needle
    found = value.encode() if isinstance(value, str) else value
    return isinstance(found, bytes) and (needle.encode() if isinstance(needle, str) else needle) in found
