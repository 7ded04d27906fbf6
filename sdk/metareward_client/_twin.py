"""What is said once of the blocking client holds for its twin, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def twin(original: Callable[..., Any]) -> Callable[[F], F]:
    """Give a method the docstring of the one that it does the same as."""

    def document(method: F) -> F:
        method.__doc__ = original.__doc__
        return method

    return document
