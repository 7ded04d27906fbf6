"""What the operations need of an engine: texts in, base rewards out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Engine(Protocol):
    """The worker in this process, or one behind a socket."""

    @property
    def healthy(self) -> bool:
        """Whether it answers."""
        ...

    @property
    def queued_tokens(self) -> int:
        """Tokens that were accepted and not yet answered."""
        ...

    @property
    def shared(self) -> bool:
        """Whether other replicas depend on it too: where it is down this process is degraded, not unready."""
        ...

    def check_room(self, tokens: int, *, scope: bytes = b"") -> None:
        """Refuse early what `submit` would refuse now, before a text is rendered.

        Args:
            tokens: What is to come, or a lower bound of it: a text has one token at least.
            scope: Whose it is.

        Raises:
            Overloaded, Unavailable: As `submit` does.
        """
        ...

    def submit(
        self, texts: Sequence[Sequence[int]], *, scope: bytes = b"", deadline: float | None = None
    ) -> list[Future[npt.NDArray[np.float64]]]:
        """Accept all texts (token ids) or none; each future ends in base rewards [K] or an error of its own.

        Args:
            texts: One job: the engine is fair between jobs of a scope, and between scopes.
            scope: Whose texts they are; texts of different scopes share neither computation nor a cache.
            deadline: On the monotonic clock; a text that has not reached the device by then ends in `Unavailable`.

        Raises:
            Overloaded: The queue cannot take them; nothing was accepted.
            Unavailable: The engine is down.
        """
        ...
