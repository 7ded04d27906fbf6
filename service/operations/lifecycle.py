"""Where a process stands in its life, and how much it has taken on."""

from __future__ import annotations

from service.errors import Overloaded


class Lifecycle:
    """Counts what is in flight and knows whether the process is about to end. Lives on one event loop.

    A process that drains still answers: load balancers need a moment to notice that /ready says no.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.draining = False
        self.requests = 0
        self.bytes = 0
        self._max_requests = max_requests
        self._max_bytes = max_bytes

    def begin_request(self) -> None:
        """Take one more request.

        Raises:
            Overloaded: There are too many already.
        """
        if self.requests >= self._max_requests:
            raise Overloaded("Too many requests at once.")
        self.requests += 1

    def end_request(self, received_bytes: int) -> None:
        """A request that was begun has its answer; its body is gone."""
        self.requests -= 1
        self.bytes -= received_bytes

    def receive(self, received_bytes: int) -> None:
        """Hold more of a request's body, until `end_request` gives it back.

        Raises:
            Overloaded: The bodies of all requests together have grown too large; these bytes are not counted.
        """
        if self.bytes + received_bytes > self._max_bytes and self.requests > 1:
            raise Overloaded("Too many bytes at once.")
        self.bytes += received_bytes
