"""Cohere's own Python client on a real server: what it sends, what it reads, and what it makes of errors."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import cohere
import httpx
import pytest
from cohere.errors import NotFoundError, UnauthorizedError, UnprocessableEntityError
from deployment import Front, Server

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/rerank_cohere.py"
PAGE = ROOT / "docs/rlhf/rerank.md"
QUERY = "How do I keep basil alive indoors?"
DOCUMENTS = ["Light and water.", "What a lovely question! Basil has a long history.", "", "Buy a new one."]
PAIRS = [
    {"prompt": prompt, "chosen": "Yes: water, light, warmth.", "rejected": "Oh, what a lovely thing to talk about!"}
    for prompt in ("Does basil grow indoors?", "Can I grow mint?", "Can I grow thyme?")
]


@pytest.fixture(scope="module")
def ada(server: Server) -> str:
    user_id = f"ada-{uuid.uuid4().hex}"
    httpx.post(f"{server.url}/users/{user_id}/adapt", json={"pairs": PAIRS}, timeout=60).raise_for_status()
    return user_id


@pytest.fixture
def client(server: Server) -> cohere.ClientV2:
    return cohere.ClientV2(base_url=server.url, api_key="none", timeout=60)


def scored(server: Server, user_id: str | None) -> dict[str, Any]:
    body = {"user_id": user_id, "prompt": QUERY, "completions": DOCUMENTS}
    answer: dict[str, Any] = httpx.post(f"{server.url}/score", json=body, timeout=60).raise_for_status().json()
    return answer


def check_ranked(results: list[Any], expected: dict[str, Any]) -> None:
    assert [each.index for each in results] == expected["order"][: len(results)]
    assert [each.reward for each in results] == pytest.approx([expected["rewards"][each.index] for each in results])
    scores = [each.relevance_score for each in results]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] < scores[0] < 1


def test_a_user_is_named_in_the_model_or_in_a_field_of_its_own(
    server: Server, client: cohere.ClientV2, ada: str
) -> None:
    expected = scored(server, ada)
    by_model = client.rerank(model=f"demo@{ada}", query=QUERY, documents=DOCUMENTS)
    check_ranked(by_model.results, expected)
    assert len(by_model.results) == len(DOCUMENTS)
    assert (by_model.user_id, by_model.user_state, by_model.version) == (ada, "adapted", 1)
    assert by_model.meta.api_version.version == "2"
    assert by_model.meta.billed_units.search_units == 1
    by_field = client.rerank(
        model="demo",
        query=QUERY,
        documents=DOCUMENTS,
        top_n=2,
        request_options={"additional_body_parameters": {"user": ada}},
    )
    assert by_field.results == by_model.results[:2]
    nobody = client.rerank(model="demo", query=QUERY, documents=DOCUMENTS)
    check_ranked(nobody.results, scored(server, None))
    assert (nobody.user_id, nobody.user_state) == (None, "population")


def test_the_async_client_and_that_of_the_first_version_get_the_same(
    server: Server, client: cohere.ClientV2, ada: str
) -> None:
    wanted = client.rerank(model=f"@{ada}", query=QUERY, documents=DOCUMENTS, top_n=3)

    async def ask() -> cohere.V2RerankResponse:
        async with cohere.AsyncClientV2(base_url=server.url, api_key="none", timeout=60) as awaited:
            return await awaited.rerank(model=f"@{ada}", query=QUERY, documents=DOCUMENTS, top_n=3)

    assert asyncio.run(ask()).results == wanted.results
    first = cohere.Client(base_url=server.url, api_key="none", timeout=60)
    documents = [{"text": text} for text in DOCUMENTS]
    answer = first.rerank(model=f"@{ada}", query=QUERY, documents=documents, top_n=3, return_documents=True)
    assert [(each.index, each.reward) for each in answer.results] == [
        (each.index, each.reward) for each in wanted.results
    ]
    assert [each.document.text for each in answer.results] == [DOCUMENTS[each.index] for each in answer.results]


def test_errors_are_those_that_the_client_knows_with_what_to_mend(server: Server, client: cohere.ClientV2) -> None:
    with pytest.raises(NotFoundError) as unknown:
        client.rerank(model="rerank-v3.5", query=QUERY, documents=DOCUMENTS)
    assert "no loaded checkpoint" in unknown.value.body["message"]
    with pytest.raises(UnprocessableEntityError) as bad:
        client.rerank(model="", query=QUERY, documents=[])
    assert bad.value.body["message"] == "documents: is empty; give at least one"
    with pytest.raises(UnauthorizedError) as stranger:
        cohere.ClientV2(base_url=server.url, api_key="mr_wrong").rerank(model="", query=QUERY, documents=DOCUMENTS)
    assert stranger.value.body["message"]


def test_an_overloaded_server_is_asked_again_by_the_client_itself(server: Server) -> None:
    front = Front(server.port)
    try:
        front.refuse(0.5)
        client = cohere.ClientV2(base_url=front.url, api_key="none", timeout=60)
        assert client.rerank(model="", query=QUERY, documents=DOCUMENTS).results
        assert front.refused_at, "nothing was refused, so nothing was tried"
    finally:
        front.close()


def test_the_first_lines_of_the_page_run(server: Server) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    code = code.replace("http://127.0.0.1:8000", server.url)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert sorted(line.split()[0] for line in said.stdout.splitlines()) == ["0", "1"]


def test_the_example_runs_as_it_is_written(server: Server) -> None:
    environment = {**os.environ, "METAREWARD_URL": server.url}
    environment.pop("METAREWARD_API_KEY", None)
    said = subprocess.run(
        [sys.executable, EXAMPLE], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    lines = said.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["ada:", "nobody:"]
    assert len(lines) == 6
    hers, everybodys = ([line.split(maxsplit=1)[1] for line in some] for some in (lines[1:3], lines[4:]))
    assert hers[0] != everybodys[0], "she would get what everybody gets"
