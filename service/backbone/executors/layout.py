"""Where a packed batch's queries look: rows of keys and values, run by run. Pure policy over a `Plan`, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.backbone.packing import Plan

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of keys and values.

    Attributes:
        source: Index of a known prefix that holds them; -1 for the rows that this batch computes.
        start: The first row there.
        stop: Behind the last.
    """

    source: int
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """How many rows."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive queries and what they may look at: the last key is the last query's own token.

    Attributes:
        start: The packed row of the first query.
        stop: Behind the last.
        pieces: Keys and values from the text's first token on; query i of n sees all but the last n - 1 - i.
    """

    start: int
    stop: int
    pieces: tuple[Piece, ...]

    @property
    def queries(self) -> int:
        """How many rows ask."""
        return self.stop - self.start

    @property
    def keys(self) -> int:
        """How many tokens the last query sees."""
        return sum(piece.tokens for piece in self.pieces)


def runs_of(plan: Plan, sources: Sequence[int], known: Sequence[int]) -> list[Run]:
    """One run for each segment.

    Args:
        plan: The packed batch.
        sources: For each text the index of the known prefix that it continues; -1 for none.
        known: For each text how many tokens of that prefix it takes.
    """
    paths: list[tuple[Piece, ...]] = []
    for segment in plan.segments:
        own = Piece(-1, segment.row, segment.row + segment.tokens)
        if segment.parent >= 0:
            before = paths[segment.parent]
        elif segment.start:
            before = (Piece(sources[segment.text], 0, known[segment.text]),)
        else:
            before = ()
        if before and before[-1].source == -1 and before[-1].stop == own.start:
            paths.append((*before[:-1], Piece(-1, before[-1].start, own.stop)))  # rows that follow each other are one
        else:
            paths.append((*before, own))
    return [Run(s.row, s.row + s.tokens, path) for s, path in zip(plan.segments, paths, strict=True)]


def ends_of(plan: Plan, runs: Sequence[Run]) -> tuple[list[Run], list[int]]:
    """Only the queries that are somebody's last token.

    Returns:
        Their runs of one query each, numbered anew from row 0 on, and for each text the row of its last token there.
    """
    number: dict[int, int] = {}
    for segment in plan.segment_of:
        number.setdefault(segment, len(number))
    ends = [Run(row, row + 1, runs[segment].pieces) for segment, row in number.items()]
    return ends, [number[segment] for segment in plan.segment_of]


def first_pieces(pieces: Sequence[Piece], tokens: int) -> list[Piece]:
    """The pieces that hold the first `tokens` tokens of a path."""
    taken: list[Piece] = []
    for piece in pieces:
        if tokens <= 0:
            break
        taken.append(Piece(piece.source, piece.start, min(piece.stop, piece.start + tokens)))
        tokens -= piece.tokens
    return taken


def key_rows(runs: Sequence[Run], offsets: Sequence[int], new_offset: int) -> Rows:
    """Rows of all runs' keys, one run behind the other, in the concatenation of all sources.

    Args:
        runs: R runs.
        offsets: Where each known prefix begins there.
        new_offset: Where the rows of this batch begin.
    """
    return np.concatenate(
        [
            np.arange(piece.start, piece.stop) + (new_offset if piece.source < 0 else offsets[piece.source])
            for run in runs
            for piece in run.pieces
        ]
    )


def pages_of(
    runs: Sequence[Run], offsets: Sequence[int], new_offset: int, page: int
) -> tuple[Rows, npt.NDArray[np.int32]]:
    """Keys in pages that runs share: a page with the same rows is there once.

    Returns:
        Rows of all pages [pages * page], a page that is not full filled up with row 0; and for each run its pages,
        filled up with 0 [R, most pages of a run].
    """
    number: dict[bytes, int] = {}
    pages: list[Rows] = []
    tables: list[list[int]] = []
    for run in runs:
        rows = key_rows([run], offsets, new_offset)
        table = []
        for at in range(0, len(rows), page):
            part = rows[at : at + page]
            place = number.setdefault(part.tobytes(), len(pages))
            if place == len(pages):
                pages.append(np.pad(part, (0, page - len(part))))
            table.append(place)
        tables.append(table)
    width = max(map(len, tables))
    return np.concatenate(pages), np.array([table + [0] * (width - len(table)) for table in tables], dtype=np.int32)


def alike(runs: Sequence[Run], *, most_filling: float, most_keys: int) -> list[list[int]]:
    """Runs with as many keys before them and about as many queries, together.

    Args:
        runs: In any order.
        most_filling: The largest share of a group's queries that filling it up to its longest run may add.
        most_keys: The most keys of a group's runs together; a single run may have more.

    Returns:
        Indices into `runs`, each once, the longest run of a group first.
    """
    groups: list[list[int]] = []
    real = 0
    for index in sorted(range(len(runs)), key=lambda i: (runs[i].keys - runs[i].queries, -runs[i].queries)):
        run = runs[index]
        if groups:
            first = runs[groups[-1][0]]
            filled = (len(groups[-1]) + 1) * first.queries
            if (
                first.keys - first.queries == run.keys - run.queries
                and filled - real - run.queries <= most_filling * filled
                and (len(groups[-1]) + 1) * first.keys <= most_keys
            ):
                groups[-1].append(index)
                real += run.queries
                continue
        groups.append([index])
        real = run.queries
    return groups


def visible(
    runs: Sequence[Run], queries: int, offsets: Sequence[int], new_offset: int, keys: int
) -> npt.NDArray[np.bool_]:
    """Which query sees which key [queries, keys]: the mask that every executor must agree with."""
    mask = np.zeros((queries, keys), dtype=np.bool_)
    for run in runs:
        rows = key_rows([run], offsets, new_offset)
        mask[run.start : run.stop, rows] = np.tri(run.queries, len(rows), len(rows) - run.queries, dtype=np.bool_)
    return mask
