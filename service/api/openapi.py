"""The OpenAPI document: FastAPI's own, with errors as the problems that they are, and an example of every answer."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from service.api.examples import ANSWERS
from service.api.schemas import Problem

DESCRIPTION = """
Rewards for LLM responses as one person would give them.

1. `POST /users/{user_id}/adapt` with a few of the user's choices.
2. `POST /score` with candidate completions: rewards and an order that follow this user.

`reward(a) - reward(b)` is the log-odds that the user prefers a to b. Errors are RFC 9457 problems; a 503 says in
`Retry-After` when to try again.
"""


def install_openapi(app: FastAPI) -> None:
    """Document `Problem` and examples, and drop FastAPI's own validation error, which this server never sends."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            schemas = document["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(problem.pop("$defs"))
            schemas[Problem.__name__] = problem
            for name, example in ANSWERS.items():
                schemas[name]["examples"] = [example]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
