"""Tables for terminals and pipes: nothing is cut off, since ids are there to be copied."""

from __future__ import annotations

from collections.abc import Sequence

import typer


def print_table(rows: Sequence[dict[str, str]]) -> None:
    """Print at least one row, each with the same keys, which are the titles."""
    lines = [tuple(rows[0]), *(tuple(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
