"""Sets of serial numbers as intervals: which of a user's statements counted in a version.

Statements come one after the other and mostly stay, so a set of thousands is one interval, and a few bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Serials:
    """A set of numbers from 0.

    Attributes:
        ranges: Its intervals (first, end), the end not included: ascending, apart from one another, none empty.
    """

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def below(cls, end: int) -> Serials:
        """0 to `end` - 1."""
        return cls(((0, end),)) if end > 0 else cls()

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Serials:
        """These numbers."""
        return cls._joined([(number, number + 1) for number in numbers])

    @classmethod
    def between(cls, first: int, end: int) -> Serials:
        """`first` to `end` - 1."""
        return cls(((first, end),)) if end > first else cls()

    @classmethod
    def _joined(cls, ranges: list[tuple[int, int]]) -> Serials:
        joined: list[tuple[int, int]] = []
        for first, end in sorted(ranges):
            if joined and first <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((first, end))
        return cls(tuple(joined))

    def __contains__(self, number: int) -> bool:
        return any(first <= number < end for first, end in self.ranges)

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __or__(self, other: Serials) -> Serials:
        return self._joined([*self.ranges, *other.ranges])

    def __sub__(self, other: Serials) -> Serials:
        return Serials(tuple(self._without(other)))

    def _without(self, other: Serials) -> Iterator[tuple[int, int]]:
        holes = iter(other.ranges)
        hole = next(holes, None)
        for first, end in self.ranges:
            while hole is not None and hole[0] < end:
                if first < hole[0]:
                    yield first, hole[0]
                first = max(first, hole[1])
                if hole[1] > end:  # it reaches into the next interval
                    break
                hole = next(holes, None)
            if first < end:
                yield first, end

    def pack(self) -> bytes:
        """The gaps and lengths of the intervals in turn, seven bits a byte, the lowest first (LEB128)."""
        packed = bytearray()
        at = 0
        for first, end in self.ranges:
            for number in (first - at, end - first):
                while number >= 0x80:
                    packed.append(number & 0x7F | 0x80)
                    number >>= 7
                packed.append(number)
            at = end
        return bytes(packed)

    @classmethod
    def unpack(cls, packed: bytes) -> Serials:
        """The inverse of `pack`."""
        numbers, number, shift = [], 0, 0
        for byte in packed:
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                numbers.append(number)
                number = shift = 0
        ranges, at = [], 0
        for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
            ranges.append((at + gap, at + gap + length))
            at += gap + length
        return cls(tuple(ranges))
