"""Which tokens of a batch are computed once, and where: pure policy, no torch.

Texts that begin alike share the computation of what they have in common: in a causal decoder a token's keys and values
depend on the tokens before it and on nothing else. So a batch is a forest, its nodes (`Segment`) runs of tokens, and
each text a path from a root. The forest is read off the texts in sorted order, where the longest common prefixes of
neighbours are those of all (as a suffix tree is read off a suffix array).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

# Sharing less than this saves less than another segment costs: 16 tokens are 1 % of a small batch.
MIN_SHARED_TOKENS: Final = 16
TOKEN_BYTES: Final = array("I").itemsize


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens that are computed once for every text that passes through them.

    Attributes:
        parent: Index of the segment that it continues; -1 for none. Parents come before their children.
        text: Index of a text that holds its tokens.
        start: Position of its first token in that text; where it has no parent, the tokens before it are known.
        stop: Position behind its last token.
        row: The packed row of its first token.
    """

    parent: int
    text: int
    start: int
    stop: int
    row: int

    @property
    def tokens(self) -> int:
        """How many it computes."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Plan:
    """A batch, packed.

    Attributes:
        segments: In the order of their rows, without gaps.
        last_rows: For each text the row of its last token.
        segment_of: For each text the index of the segment that holds its last token.
    """

    segments: tuple[Segment, ...]
    last_rows: tuple[int, ...]
    segment_of: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Rows: tokens that are computed."""
        return sum(segment.tokens for segment in self.segments)

    def token_ids(self, texts: Sequence[Sequence[int]]) -> list[int]:
        """The token of each row; `texts` are those that were planned."""
        return [token for s in self.segments for token in texts[s.text][s.start : s.stop]]

    def positions(self) -> list[int]:
        """For each row the place of its token in its text."""
        return [position for s in self.segments for position in range(s.start, s.stop)]

    def path(self, index: int) -> tuple[int, ...]:
        """Indices of the segments from a root down to `index`, both included."""
        path = [index]
        while (parent := self.segments[path[-1]].parent) >= 0:
            path.append(parent)
        return tuple(reversed(path))


def plan(
    keys: Sequence[bytes],
    groups: Sequence[object] | None = None,
    known: Sequence[int] | None = None,
    *,
    min_shared: int = MIN_SHARED_TOKENS,
) -> Plan:
    """Pack texts into one row.

    Args:
        keys: B >= 1 texts, `encode`d, none empty.
        groups: One key per text; texts of different keys share nothing. None: all may share.
        known: For each text how many leading tokens need no computation because their keys and values are at hand;
            less than its length. Texts of one group must know the same ones. None: nothing is known.
        min_shared: The fewest tokens that are worth a segment of their own.

    Returns:
        Each distinct token path once, but for runs shorter than `min_shared`.
    """
    nodes: list[_Node] = []
    ends: list[_Node | None] = [None] * len(keys)
    path: list[_Node] = []
    for index, common in _in_order(keys, groups):
        start, length = 0 if known is None else known[index], len(keys[index]) // TOKEN_BYTES
        if common is None:
            path, common = [], start
        shared = _descend(path, nodes, max(start, common), start, length, min_shared)
        if shared < length:
            leaf = _Node(path[-1] if path else None, index, shared, length)
            nodes.append(leaf)
            path.append(leaf)
        ends[index] = path[-1]
    return _packed(nodes, ends)


class PrefixTree:
    """What a growing batch costs, in tokens after sharing, one text at a time.

    `plan` may compute up to `min_shared` - 1 tokens of a text more, or fewer, as its segments happen to end.
    """

    def __init__(self, min_shared: int = MIN_SHARED_TOKENS) -> None:
        self._min_shared = min_shared
        self._keys: dict[bytes, list[bytes]] = {}

    def insert(self, key: bytes, scope: bytes = b"") -> None:
        """Take in a text by its `encode`d ids."""
        insort(self._keys.setdefault(scope, []), key)

    def remove(self, key: bytes, scope: bytes = b"") -> None:
        """Take out a text that was inserted."""
        keys = self._keys[scope]
        del keys[bisect_left(keys, key)]
        if not keys:
            del self._keys[scope]

    def shared_tokens(self, key: bytes, scope: bytes = b"") -> int:
        """The longest prefix that an `encode`d text shares with any in the tree; 0 if it is not worth sharing."""
        keys = self._keys.get(scope)
        if not keys:
            return 0
        place = bisect_left(keys, key)
        shared = 0
        for neighbour in keys[max(0, place - 1) : place + 1]:
            shared = max(shared, common_tokens(neighbour, key))
        return shared if shared >= self._min_shared or shared * TOKEN_BYTES == len(key) else 0


def encode(token_ids: Sequence[int]) -> bytes:
    """Token ids as bytes that compare quickly; texts sorted by them stand next to those that begin alike."""
    return array("I", token_ids).tobytes()


def common_tokens(left: bytes, right: bytes) -> int:
    """How many leading tokens two `encode`d texts have in common."""
    low, high = 0, min(len(left), len(right)) // TOKEN_BYTES
    if left[: high * TOKEN_BYTES] == right[: high * TOKEN_BYTES]:
        return high
    while low < high:  # comparing slices is a memcmp: eleven of them find the place in 2,000 tokens
        middle = (low + high + 1) // 2
        if left[low * TOKEN_BYTES : middle * TOKEN_BYTES] == right[low * TOKEN_BYTES : middle * TOKEN_BYTES]:
            low = middle
        else:
            high = middle - 1
    return low


class _Node:
    __slots__ = ("parent", "start", "stop", "text")

    def __init__(self, parent: _Node | None, text: int, start: int, stop: int) -> None:
        self.parent = parent
        self.text = text
        self.start = start
        self.stop = stop


def _descend(path: list[_Node], nodes: list[_Node], shared: int, start: int, length: int, min_shared: int) -> int:
    """Shorten `path` to what the next text has in common with it, splitting the node in which they part.

    Returns:
        The position from which the next text needs a node of its own.
    """
    parted = None
    while path and path[-1].stop > shared:
        parted = path.pop()
    reached = path[-1].stop if path else start
    if parted is None or shared == reached:
        return reached
    if shared - reached < min_shared and shared < length:
        return reached
    upper = _Node(parted.parent, parted.text, parted.start, shared)
    nodes.append(upper)
    parted.parent, parted.start = upper, shared
    path.append(upper)
    return shared


def _packed(nodes: Sequence[_Node], ends: Sequence[_Node | None]) -> Plan:
    """Number the nodes so that parents come first and a text's own run lies beside its kin."""
    children: dict[int, list[_Node]] = {}
    for node in nodes:
        children.setdefault(0 if node.parent is None else id(node.parent), []).append(node)
    segments: list[Segment] = []
    index_of: dict[int, int] = {}
    row = 0
    waiting = children.get(0, [])[::-1]
    while waiting:
        node = waiting.pop()
        index_of[id(node)] = len(segments)
        parent = -1 if node.parent is None else index_of[id(node.parent)]
        segments.append(Segment(parent, node.text, node.start, node.stop, row))
        row += node.stop - node.start
        waiting.extend(children.get(id(node), [])[::-1])
    places = [index_of[id(end)] for end in ends]
    last_rows = [segments[place].row + segments[place].tokens - 1 for place in places]
    return Plan(tuple(segments), tuple(last_rows), tuple(places))


def rows_of(
    keys: Sequence[bytes],
    groups: Sequence[object] | None,
    max_tokens: int,
    *,
    min_shared: int = MIN_SHARED_TOKENS,
) -> list[list[int]]:
    """Split a batch into rows of at most `max_tokens` computed tokens each; kin stays together.

    Args:
        keys: As `plan` takes them.
        groups: Likewise.
        max_tokens: Of a row's plan, with nothing known.
        min_shared: What the rows will be planned with.

    Returns:
        Indices into `keys`, each exactly once; a text of more than `max_tokens` is alone.
    """
    rows: list[list[int]] = []
    path: list[_Node] = []
    used = 0
    for index, common in _in_order(keys, groups):
        length = len(keys[index]) // TOKEN_BYTES
        if common is None:
            path, common = [], 0
        start = _descend(path, [], common, 0, length, min_shared)
        if rows and used + length - start <= max_tokens:
            rows[-1].append(index)
            used += length - start
        else:
            rows.append([index])
            used, path, start = length, [], 0
        if start < length:
            path.append(_Node(path[-1] if path else None, index, start, length))
    return rows


def _in_order(keys: Sequence[bytes], groups: Sequence[object] | None) -> Iterator[tuple[int, int | None]]:
    """Indices of texts so that kin stand together, and how many tokens each has in common with the one before it.

    None where a group begins: what stands before shares nothing.
    """
    number: dict[object, int] = {}
    group_of = [0] * len(keys) if groups is None else [number.setdefault(group, len(number)) for group in groups]
    order = sorted(range(len(keys)), key=lambda i: (group_of[i], keys[i]))
    for place, index in enumerate(order):
        before = order[place - 1]
        kin = place > 0 and group_of[before] == group_of[index]
        yield index, common_tokens(keys[before], keys[index]) if kin else None
