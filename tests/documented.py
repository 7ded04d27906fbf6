"""What an OpenAPI document under docs/ says of each route, and whether an answer is as it says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema

ROOT = Path(__file__).resolve().parents[1]
ROLES = ("score", "adapt", "admin")


@dataclass(frozen=True)
class Operation:
    """One method of one path, and a request that it would take: its body, and what its query must have."""

    path: str
    method: str
    role: str | None
    body: Any
    query: Any = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def of_a_user(self) -> bool:
        return "{user_id}" in self.path

    def request(self, client: httpx.Client, user_id: str = "ada", **options: Any) -> httpx.Response:
        url = self.path.replace("{user_id}", user_id)
        options.setdefault("params", {})
        options["params"] = (self.query or {}) | options["params"]
        return client.request(self.method.upper(), url, **({} if self.body is None else {"json": self.body}), **options)


REST_DOCUMENT = "docs/openapi.json"
WORKER_DOCUMENT = "docs/worker-openapi.json"


def read_document(path: str = REST_DOCUMENT) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / path).read_text())
    return document


def operations(document: dict[str, Any]) -> list[Operation]:
    """Every operation of the document, with the first example of its body."""
    return [
        Operation(path, method, route.get("x-role"), _example(document, route), _needed(route))
        for path, methods in document["paths"].items()
        for method, route in methods.items()
    ]


def _example(document: dict[str, Any], route: dict[str, Any]) -> Any:
    if "requestBody" not in route:
        return None
    schema = route["requestBody"]["content"]["application/json"]["schema"]
    name = (schema.get("anyOf") or schema.get("oneOf") or [schema])[0]["$ref"].rpartition("/")[2]
    return document["components"]["schemas"][name]["examples"][0]


def _needed(route: dict[str, Any]) -> dict[str, Any]:
    """The first examples of the query parameters that must be given."""
    return {
        parameter["name"]: parameter["schema"]["examples"][0]
        for parameter in route.get("parameters", [])
        if parameter["in"] == "query" and parameter["required"]
    }


def schema_check(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def check_answer(document: dict[str, Any], path: str, method: str, response: httpx.Response) -> None:
    """The answer's status, content type and body are documented."""
    documented = document["paths"][path][method]["responses"]
    assert str(response.status_code) in documented, f"{response.status_code} is undocumented: {response.text}"
    content = documented[str(response.status_code)].get("content")
    if content is None:
        assert response.content == b""
        return
    media_type = response.headers["content-type"].partition(";")[0]
    assert media_type in content
    schema_check(document, content[media_type]["schema"], response.json())
