"""Collects what is wrong with an input, so that a person mends all of it at once."""

from __future__ import annotations

from typing import Final

from service.errors import FieldIssue, InvalidInput

SHOWN: Final = 20


class BadRows:
    """Every bad row of an input; the first `SHOWN` are told in full, the others counted."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._issues: list[FieldIssue] = []
        self._count = 0

    def add(self, place: str, message: str) -> None:
        """Note that the row at `place` (`line 17`) is bad. The message must not echo the row."""
        self._count += 1
        if len(self._issues) < SHOWN:
            self._issues.append(FieldIssue(f"{self._name}, {place}", message))

    def __len__(self) -> int:
        return self._count

    def refuse(self) -> None:
        """Raise if anything was noted.

        Raises:
            InvalidInput: With one issue per bad row, at most `SHOWN`, and one that counts the others.
        """
        if not self._count:
            return
        rest = self._count - len(self._issues)
        more = [FieldIssue(self._name, f"and {rest} more bad rows")] if rest else []
        raise InvalidInput([*self._issues, *more])
