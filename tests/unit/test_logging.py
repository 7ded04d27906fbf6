"""The formatters and what they tell of exceptions, without a server."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy
import uvicorn

from service.errors import EngineError
from service.observability import context
from service.observability.logging import configure_logging
from service.observability.redaction import describe, tell

SECRET = "zyxsecretzyx"


@pytest.fixture
def stream(log_as_before: None) -> io.StringIO:
    """A configured log."""
    stream = io.StringIO()
    configure_logging("info", "auto", stream)
    return stream


def test_strangers_who_speak_no_http_do_not_fill_the_log(stream: io.StringIO) -> None:
    async def no_application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def path() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(no_application, http="httptools", log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        for sent in (b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1])
            writer.write(sent)
            assert (await asyncio.wait_for(reader.readline(), 30)).startswith(b"HTTP/1.1 ")
            writer.close()
        server.should_exit = True
        await serving

    asyncio.run(path())
    # threads of other tests may still be about to say something
    assert [line for line in stream.getvalue().splitlines() if "uvicorn" in json.loads(line)["logger"]] == []
    logging.getLogger("uvicorn.error").error("what fails is told")
    assert "what fails is told" in stream.getvalue()


def test_what_is_no_terminal_gets_one_json_object_a_line(stream: io.StringIO) -> None:
    context.request_id.set("r1")
    logging.getLogger("service.x").info("two\nlines of %d", 2, extra={"ms": 1.5, "odd": "\ud800", "what": object()})
    logging.getLogger("service.x").debug("not at this level")
    logging.getLogger("httpx").info("HTTP Request: GET http://host/users/ada")
    context.request_id.set("")
    line = json.loads(stream.getvalue())
    timestamp = line.pop("timestamp")
    assert len(timestamp) == len("2026-01-31T12:00:00.000Z")
    assert timestamp.endswith("Z")
    assert line == {
        "level": "info",
        "logger": "service.x",
        "message": "two\nlines of 2",
        "request_id": "r1",
        "ms": 1.5,
        "odd": "\ud800",
        "what": "<object>",
    }


def test_text_lines_quote_what_could_pass_for_another_field(stream: io.StringIO) -> None:
    configure_logging("info", "text", stream)
    logging.getLogger("service.x").info("said", extra={"a": "x\ny level=debug", "b": {"user": 0.5}})
    assert stream.getvalue().endswith('INFO    service.x: said a="x\\ny level=debug" b=user:0.5\n')


def test_a_thread_that_dies_is_told_of_without_its_message(stream: io.StringIO) -> None:
    def dies() -> None:
        raise ValueError(SECRET)

    thread = threading.Thread(target=dies, name="some-thread")
    thread.start()
    thread.join()
    line = json.loads(stream.getvalue())
    assert line["message"] == "the thread some-thread died"
    assert line["exception"].endswith(f"ValueError: (message of {len(SECRET)} characters withheld)")


def test_a_thread_of_an_executor_knows_the_request_where_it_is_told() -> None:
    context.request_id.set("r2")
    with ThreadPoolExecutor(1) as executor:
        executor.submit(lambda: None).result()
        assert executor.submit(context.request_id.get).result() == ""
        assert executor.submit(context.in_context(context.request_id.get)).result() == "r2"
    context.request_id.set("")


def test_messages_are_told_only_of_errors_that_quote_nothing() -> None:
    class RowError(Exception):
        sqlstate = "23505"

    assert describe(EngineError("the device failed")) == "service.errors.EngineError: the device failed"
    assert describe(ConnectionRefusedError(111, "refused", SECRET)) == "ConnectionRefusedError: [Errno 111] refused"
    assert describe(RowError(f"Key (user_id)=({SECRET})")).endswith("RowError: SQLSTATE 23505")
    assert describe(KeyError(SECRET)) == f"KeyError: (message of {len(SECRET) + 2} characters withheld)"
    assert describe(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_traceback_tells_causes_and_groups_but_no_row() -> None:
    engine = sqlalchemy.create_engine("sqlite://", hide_parameters=True)
    table = sqlalchemy.Table("users", sqlalchemy.MetaData(), sqlalchemy.Column("id", sqlalchemy.Text, primary_key=True))
    with engine.connect() as connection:
        table.create(connection)
        connection.execute(table.insert(), {"id": SECRET})
        with pytest.raises(sqlalchemy.exc.IntegrityError) as caught:
            connection.execute(table.insert(), {"id": SECRET})
    told = tell(ExceptionGroup(SECRET, [caught.value, ValueError(SECRET)]))
    assert "sqlite3.IntegrityError: UNIQUE constraint failed: users.id" in told
    assert "The above exception was the direct cause" in told
    assert "sqlalchemy.exc.IntegrityError: (message of" in told
    assert SECRET not in told


def test_exceptions_that_cause_each_other_are_told_once() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert tell(first).count("ValueError") == 2
