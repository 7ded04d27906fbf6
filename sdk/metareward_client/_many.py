"""How many items become few requests: which travel together, and where their answers go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from metareward_client import _calls
from metareward_client._call import Call, checked, json_of
from metareward_client.answers import Limits, Score
from metareward_client.requests import ScoreItem

ENVELOPE_BYTES = 256
"""More than a request's body has beside its items."""


@dataclass(frozen=True)
class Part:
    """An item, ready to be sent."""

    json: bytes
    completions: int
    prompt: str
    """The same for the same prompt."""


def part_of(item: ScoreItem | Mapping[str, Any], field: str) -> Part:
    """Check an item and write it down.

    Raises:
        InvalidRequest: What is wrong with it, in paths that begin with `field`.
    """
    found = checked(ScoreItem, item, field)
    return Part(json_of(found, field), len(found.completions), repr(found.prompt))


def requests_of(parts: Sequence[Part], *, completions: int, max_bytes: int) -> list[list[int]]:
    """Part items into requests, as indices: the items of a prompt in one, where they fit, in the order sent.

    The server computes what completions of a prompt share once a request.

    Args:
        parts: The items.
        completions: Most completions in a request; an item that has more travels alone.
        max_bytes: Most bytes in a request's body.
    """
    by_prompt: dict[str, list[int]] = {}
    for index, part in enumerate(parts):
        by_prompt.setdefault(part.prompt, []).append(index)
    found: list[list[int]] = []
    used = bytes_used = 0

    def size(indices: Sequence[int]) -> tuple[int, int]:
        return sum(parts[i].completions for i in indices), sum(len(parts[i].json) + 1 for i in indices)

    def fits(count: int, count_bytes: int) -> bool:
        return used + count <= completions and bytes_used + count_bytes <= max_bytes - ENVELOPE_BYTES

    for indices in by_prompt.values():
        # All of a prompt behind what there is, or in a new request, or in as many as they need.
        for together in [indices] if fits(*size(indices)) else [[index] for index in indices]:
            if not found or not fits(*size(together)) or (together is not indices and together[0] == indices[0]):
                found.append([])
                used = bytes_used = 0
            found[-1] += together
            count, count_bytes = size(together)
            used, bytes_used = used + count, bytes_used + count_bytes
    return found


def within(path: str, indices: Sequence[int]) -> str:
    """A path into a request as one into all items: `items[0].prompt` of a request that holds `indices`."""
    match = re.match(r"items\[(\d+)\]", path)
    if match is None or int(match[1]) >= len(indices):
        return path
    return f"items[{indices[int(match[1])]}]{path[match.end() :]}"


class ScoreMany:
    """Items to be scored in as many requests as they need.

    Args:
        items: What is asked.
        options: Members of every request.

    Raises:
        InvalidRequest: What is wrong with an item.
    """

    def __init__(self, items: Iterable[ScoreItem | Mapping[str, Any]], **options: bool) -> None:
        self._parts = [part_of(item, f"items[{index}]") for index, item in enumerate(items)]
        self._options = options
        self._requests: list[list[int]] = []

    def calls(self, limits: Limits, batch_size: int) -> list[Call[list[Score]]]:
        """The requests, within the server's limits."""
        self._requests = requests_of(
            self._parts, completions=min(batch_size, limits.max_completions), max_bytes=limits.max_body_bytes
        )
        return [self._call(indices) for indices in self._requests]

    def _call(self, indices: Sequence[int]) -> Call[list[Score]]:
        parts = [self._parts[index] for index in indices]
        call = _calls.score_parts([part.json for part in parts], [part.completions for part in parts], **self._options)
        return replace(call, field_of=lambda path: within(path, indices))

    def in_order(self, answers: Sequence[Sequence[Score]]) -> list[Score]:
        """What was answered to `calls`, in the order of the items."""
        by_index = {
            index: score
            for indices, scores in zip(self._requests, answers, strict=True)
            for index, score in zip(indices, scores, strict=True)
        }
        return [by_index[index] for index in range(len(self._parts))]
