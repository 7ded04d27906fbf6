"""What a connection may send before anybody has looked at it, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import uvicorn

from service.api.bounded_protocol import MAX_HEAD_BYTES, BoundedProtocol

REQUEST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = REQUEST + b"Transfer-Encoding: chunked\r\n\r\n"


async def echo_length(scope: Any, receive: Any, send: Any) -> None:
    length, more = 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        length, more = length + len(event["body"]), event["more_body"]
    body = b"%d bytes" % length
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def converse(data: bytes) -> bytes:
    """All that comes back for `data`; the writing ends where the server closes."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(echo_length, http=BoundedProtocol, log_config=None, lifespan="off", timeout_keep_alive=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1])

    async def write() -> None:
        for begin in range(0, len(data), 10_000):
            writer.write(data[begin : begin + 10_000])
            await writer.drain()
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    answer = b""
    try:
        while part := await asyncio.wait_for(reader.read(10_000), 30.0):
            answer += part
    except ConnectionError:
        pass
    await asyncio.gather(writing, return_exceptions=True)
    writer.close()
    server.should_exit = True
    await serving
    return answer


@pytest.mark.parametrize(
    "head",
    [
        REQUEST + b"X: " + b"a" * (4 << 20) + b"\r\n\r\n",
        REQUEST + b"X: a\r\n" * 700_000 + b"\r\n",
        b"GET /" + b"a" * (4 << 20) + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["one long", "many", "path"],
)
def test_endless_headers_end_the_connection(head: bytes) -> None:
    answer = asyncio.run(converse(head))
    assert not answer or answer.startswith(b"HTTP/1.1 400 ")
    assert b" bytes" not in answer


def test_endless_trailers_end_the_connection() -> None:
    assert asyncio.run(converse(CHUNKED + b"1\r\na\r\n0\r\n" + b"X: a\r\n" * 700_000 + b"\r\n")) == b""


def test_long_bodies_and_many_requests_are_none_of_its_business() -> None:
    body = b"a" * (3 * MAX_HEAD_BYTES)
    whole = REQUEST + b"X: " + b"a" * (MAX_HEAD_BYTES // 4) + b"\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    chunks = CHUNKED + b"1\r\na\r\n" * MAX_HEAD_BYTES + b"0\r\nX: a\r\n\r\n"
    assert asyncio.run(converse(whole * 5)).count(b"%d bytes" % len(body)) == 5
    assert asyncio.run(converse(chunks * 2)).count(b"%d bytes" % MAX_HEAD_BYTES) == 2
