"""Random bytes on every route: an answer as documented each time, and never a fault of the server's own."""

from __future__ import annotations

import random
from typing import Any
from urllib.parse import quote_from_bytes

import httpx
import orjson
import pytest
from documented import WORKER_DOCUMENT, Operation, check_answer, operations, read_document
from guarded import WORKER_KEY, Guarded

from benchmarks.worker import WorkerProcess

DOCUMENT = read_document()
OF_WORKER = read_document(WORKER_DOCUMENT)
REQUESTS = 120
# What HTTP allows; anything else does not get past the parser.
HEADER_BYTES = (*range(33, 127), *range(128, 256))


def noise(generator: random.Random, operation: Operation) -> bytes:
    """Bytes, JSON of any shape, or an example that was damaged."""
    kind = generator.randrange(4)
    if kind == 0:
        return generator.randbytes(generator.randrange(400))
    if kind == 1:
        return orjson.dumps(_json(generator, 4))
    sound = orjson.dumps(operation.body)
    if kind == 2:
        at = generator.randrange(len(sound) + 1)
        return sound[:at] + generator.randbytes(generator.randrange(4)) + sound[at + generator.randrange(4) :]
    return orjson.dumps(_damaged(generator, operation.body))


def _json(generator: random.Random, depth: int) -> Any:
    kind = generator.randrange(8 if depth else 6)
    if kind < 6:
        text = "".join(chr(generator.choice((*range(0xD800), *range(0xE000, 0x11000)))) for _ in range(8))
        return (None, True, generator.randrange(-(2**53), 2**53), generator.gauss(0, 1e300), text, "")[kind]
    if kind == 6:
        return [_json(generator, depth - 1) for _ in range(generator.randrange(4))]
    keys = ("user_id", "prompt", "completions", "items", "pairs", "chosen", "role", "content", "input", "messages", "x")
    return {generator.choice(keys): _json(generator, depth - 1) for _ in range(generator.randrange(4))}


def _damaged(generator: random.Random, value: Any) -> Any:
    """`value` with one part of it replaced by something else."""
    if not isinstance(value, dict | list) or not value or generator.random() < 0.2:
        return _json(generator, 2)
    at = generator.choice(list(value) if isinstance(value, dict) else range(len(value)))
    changed = value.copy()
    changed[at] = _damaged(generator, value[at])
    return changed


@pytest.mark.parametrize("operation", operations(DOCUMENT), ids=str)
def test_noise_gets_a_documented_answer(guarded: Guarded, operation: Operation) -> None:
    with guarded.client(guarded.key("noise", "admin")) as client:
        send_noise(client, DOCUMENT, operation)


@pytest.mark.parametrize("operation", operations(OF_WORKER), ids=str)
def test_noise_gets_a_documented_answer_of_a_worker(worker: WorkerProcess, operation: Operation) -> None:
    headers = {"authorization": f"Bearer {WORKER_KEY}"}
    with httpx.Client(base_url=worker.url, headers=headers, timeout=60) as client:
        send_noise(client, OF_WORKER, operation)


def send_noise(client: httpx.Client, document: dict[str, Any], operation: Operation) -> None:
    """Ask `REQUESTS` times, the same ones each time."""
    generator = random.Random(f"noise {operation}")
    statuses = set()
    for _ in range(REQUESTS):
        user = generator.choice(("ada", quote_from_bytes(generator.randbytes(6), safe="")))
        query = generator.randbytes(12).hex() if generator.random() < 0.5 else "limit=%FF&after=%00"
        response = client.request(
            operation.method.upper(),
            f"{operation.path.replace('{user_id}', user)}?{query}",
            content=noise(generator, operation) if operation.body is not None else generator.randbytes(20),
            headers=[
                (b"content-type", b"application/json"),
                (b"idempotency-key", bytes(generator.choices(HEADER_BYTES, k=4))),
                (b"x-request-id", bytes(generator.choices(HEADER_BYTES, k=8))),
            ],
        )
        statuses.add(response.status_code)
        if response.status_code == 404 and operation.of_a_user and response.json()["type"].endswith("no-such-path"):
            continue  # the noise was in the path
        check_answer(document, operation.path, operation.method, response)
    assert 500 not in statuses
    assert statuses - {404}
