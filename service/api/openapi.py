"""The OpenAPI document: FastAPI's own, with errors as the problems that they are, and an example of every answer."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.auth import ROLE_FIELD, SCHEME
from service.api.error_dialects import QUOTA_IS_503
from service.api.errors import documented
from service.api.examples import ANSWERS
from service.api.schemas import Problem

DESCRIPTION = """
Rewards for LLM responses as one person would give them.

1. `POST /users/{user_id}/adapt` with a few of the user's choices.
2. `POST /score` with candidate completions: rewards and an order that follow this user.

`reward(a) - reward(b)` is the log-odds that the user prefers a to b. Errors are RFC 9457 problems; a 503 says in
`Retry-After` when to try again, and so does a 429, which only a tenant's own quotas give.

Every tenant sees its own users and nothing of others'. A server that listens on loopback only needs no keys; there
everybody is the tenant `default`.
"""

_REF = "#/components/schemas/{model}"
# Models that FastAPI does not see, by name.
_DESCRIBED: dict[str, type[BaseModel]] = {}

_KEYS = """
An API key, as `metareward keys create` prints it, once. Its role says how far it reaches, each as far as those before:

- `score`: score, ask what to ask a user, and what is served;
- `adapt`: also adapt users, and list, read, undo, export and erase what is stored of them;
- `admin`: also whatever concerns the server itself.
"""


def described_body(*models: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its body by itself: it is one of `models`."""
    options = [{"$ref": _REF.format(model=model.__name__)} for model in models]
    schema = options[0] if len(options) == 1 else {"oneOf": options}
    _DESCRIBED.update({model.__name__: model for model in models})
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def install_openapi(app: FastAPI) -> None:
    """Document `Problem` and examples, and drop FastAPI's own validation error, which this server never sends."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            schemas = document["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            models: list[type[BaseModel]] = [Problem, *_DESCRIBED.values()]
            _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
            schemas.update(definitions["$defs"])
            for name, example in ANSWERS.items():
                schemas[name]["examples"] = [example]
            document["components"]["securitySchemes"] = {
                SCHEME: {"type": "http", "scheme": "bearer", "description": _KEYS.strip()}
            }
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    _describe_access(path, operation)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe_access(path: str, operation: dict[str, Any]) -> None:
    """What the door may answer, on every route behind it."""
    role = operation.get(ROLE_FIELD)
    if role is None:
        return
    operation["description"] += f"\n\nNeeds a key of the role `{role}`{' or higher' if role != 'admin' else ''}."
    answers = documented(401, 403, 503) if path in QUOTA_IS_503 else documented(401, 403, 429, 503)
    operation["responses"] = dict(
        sorted((operation["responses"] | {str(status): answer for status, answer in answers.items()}).items())
    )
