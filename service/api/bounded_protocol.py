"""HTTP/1.1 as uvicorn speaks it, with an end to what a caller may send before anybody has looked at it."""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# A request line and headers; a key, a trace and what proxies add take a few kilobytes.
MAX_HEAD_BYTES: Final = 65_536


class BoundedProtocol(HttpToolsProtocol):
    """Ends connections that send more than `MAX_HEAD_BYTES` without a body or the end of a request among them.

    uvicorn keeps headers and trailers however many come, each at twenty times its size, and joins the parts of a long
    one anew with each that arrives: who has no key could fill the memory and hold up the event loop.
    """

    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Take what has arrived."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.send_400_response("The headers of this request are too long.")
            else:  # an answer is under way, and this is not it
                self.transport.close()

    def on_headers_complete(self) -> None:
        """The head has an end."""
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Bodies are bounded elsewhere."""
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """So have the trailers."""
        self._head_bytes = 0
        super().on_message_complete()
