"""The worker's OpenAPI document. Its front door is plain ASGI, so nothing makes the document but this."""

from __future__ import annotations

import functools
from typing import Any, Final, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from service import __version__
from service.api.examples import SELF_CHECK
from service.api.schemas import ErrorDetail, SelfCheckOut, SelfCheckRequest
from service.api.vllm_schemas import ClassifyAnswer, ClassifyConversation, ClassifyTexts

_REF: Final = "#/components/schemas/"
_SCHEME: Final = "engineKey"
_MODEL_ID: Final = "b7" * 32

_DESCRIPTION: Final = """
Base rewards of texts, without users: what a REST layer asks, in the words of vLLM's `POST /classify`, so that a stock
`vllm serve` of an exported checkpoint answers alike. `probs` holds the base rewards A h of a text, K numbers without
their biases and without an activation.

Fields of vLLM's that are not listed here change nothing and are left alone. Every error has vLLM's shape. A 503 and a
504 say in `Retry-After` when to try again. A path that is not here gets 404, a method that is not here 405.
""".strip()

_KEY: Final = """
ENGINE_API_KEY, the same for workers and REST layers. A worker that listens on loopback only needs none; it is called
by a name of loopback then, and answers any other `Host` with 421.
""".strip()

_STATUSES: Final = {
    400: "The body is not what it must be; `param` names the field",
    401: "ENGINE_API_KEY is missing or wrong",
    404: "Another model is served here",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    421: "The worker has no key and was not called by a name of loopback",
    500: "The device failed on texts, which the message names by their indices",
    503: "Too much to do (`OverloadedError`: nothing was computed), or about to end (`ServiceUnavailableError`)",
    504: "Not done in time",
}
_TIMEOUT: Final = "Milliseconds after which nobody waits for the answer: what has not begun by then is not begun."
_TEMPORARY: Final = (503, 504)


class ServedModel(BaseModel):
    """The one that is served."""

    id: str = Field(description="The heads_id: workers and REST layers that share it mean the same base rewards.")
    object: Literal["model"]
    created: int = Field(description="When the worker started, in seconds since 1970.")
    owned_by: str
    root: str = Field(description="The backbone.")
    max_model_len: int = Field(description="The longest text, in tokens.")
    dtype: Literal["float32", "bfloat16"]


class ServedModels(BaseModel):
    """A list of one."""

    object: Literal["list"]
    data: list[ServedModel]


class WorkerLive(BaseModel):
    """The process runs."""

    status: Literal["live"]


class WorkerReady(BaseModel):
    """Whether to send it texts."""

    status: Literal["ready", "draining", "the device fails", "the self-check failed"]
    queued_tokens: int = Field(ge=0, description="Accepted and not yet answered.")


class WorkerError(BaseModel):
    """vLLM's shape."""

    error: ErrorDetail


_EXAMPLES: Final[dict[type[BaseModel], list[dict[str, Any]]]] = {
    ClassifyTexts: [
        {"input": [[101, 7592, 102], [101, 2748, 1012, 102]], "use_activation": False},
        {"input": ["Why is the sky blue?\n\nAir scatters blue light most.", "Why is the sky blue?\n\nIt is not."]},
        {"input": [101, 7592, 102]},
        {"input": "[CLS] hello [SEP]", "add_special_tokens": False},
    ],
    ClassifyConversation: [
        {
            "messages": [
                {"role": "user", "content": "Why is the sky blue?"},
                {"role": "assistant", "content": "Air scatters blue light most."},
            ]
        }
    ],
    ClassifyAnswer: [
        {
            "id": "classify-9f86d081884c7d65",
            "object": "list",
            "created": 1767323045,
            "model": _MODEL_ID,
            "data": [{"index": 0, "label": "LABEL_1", "probs": [-0.187, 0.448], "num_classes": 2}],
            "usage": {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0},
        }
    ],
    ServedModels: [
        {
            "object": "list",
            "data": [
                {
                    "id": _MODEL_ID,
                    "object": "model",
                    "created": 1767323045,
                    "owned_by": "metareward",
                    "root": "minilm",
                    "max_model_len": 512,
                    "dtype": "float32",
                }
            ],
        }
    ],
    SelfCheckRequest: [{}],
    SelfCheckOut: [SELF_CHECK],
    WorkerLive: [{"status": "live"}],
    WorkerReady: [{"status": "ready", "queued_tokens": 0}],
    WorkerError: [
        {
            "error": {
                "message": "input[1]: has no tokens; send at least one",
                "type": "BadRequestError",
                "param": "input[1]",
                "code": 400,
            }
        }
    ],
}


@functools.cache
def worker_document() -> dict[str, Any]:
    """The document; the same for every worker of this version."""
    _, definitions = models_json_schema([(model, "validation") for model in _EXAMPLES], ref_template=f"{_REF}{{model}}")
    schemas = definitions["$defs"]
    for model, examples in _EXAMPLES.items():
        schemas[model.__name__]["examples"] = examples
    return {
        "openapi": "3.1.0",
        "info": {"title": "metareward worker", "description": _DESCRIPTION, "version": __version__},
        "paths": {
            "/classify": {"post": _classify()},
            "/self-check": {"post": _self_check()},
            "/v1/models": {
                "get": _operation("models", "What is served?", {200: ServedModels}, errors=(401, 421, 500, 503))
            },
            "/live": {"get": _operation("live", "Does the process run?", {200: WorkerLive})},
            "/ready": {"get": _operation("ready", "Should it be sent texts?", {200: WorkerReady, 503: WorkerReady})},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {_SCHEME: {"type": "http", "scheme": "bearer", "description": _KEY}},
        },
    }


def _classify() -> dict[str, Any]:
    operation = _operation("classify", "Base rewards of texts", {200: ClassifyAnswer}, errors=tuple(_STATUSES))
    options = [_ref(ClassifyTexts), _ref(ClassifyConversation)]
    operation["parameters"] = [
        {
            "name": "x-timeout-ms",
            "in": "header",
            "required": False,
            "description": _TIMEOUT,
            "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
        }
    ]
    operation["requestBody"] = {"required": True, "content": _json({"oneOf": options})}
    return operation


def _self_check() -> dict[str, Any]:
    errors = (400, 401, 413, 415, 421, 500, 503, 504)
    summary = "Does it give the recorded numbers?"
    operation = _operation("self_check", summary, {200: SelfCheckOut}, errors)
    operation["description"] = (
        "The golden texts in company, one by one, and beside the checkpoint's record. It takes its turn in the queue; "
        "calls at the same time, or within a second of its end, share one check. 200 whatever it finds; where it "
        "fails, /ready and /v1/models answer 503 until a later check passes."
    )
    operation["requestBody"] = {"required": True, "content": _json(_ref(SelfCheckRequest))}
    return operation


def _operation(
    name: str, summary: str, answers: dict[int, type[BaseModel]], errors: tuple[int, ...] = ()
) -> dict[str, Any]:
    """A route. One that answers with errors is behind the key; the probes are not."""
    responses = {
        str(status): _response("As asked" if status == 200 else "Not now", _ref(model))
        for status, model in answers.items()
    }
    for status in errors:
        responses[str(status)] = _response(_STATUSES[status], _ref(WorkerError), status)
    security: list[dict[str, list[str]]] = [{_SCHEME: []}] if errors else []
    return {"operationId": name, "summary": summary, "security": security, "responses": responses}


def _response(description: str, schema: dict[str, Any], error: int | None = None) -> dict[str, Any]:
    headers = {
        "X-Queued-Tokens": _header("Tokens accepted and not yet answered, for those who balance.", minimum=0),
    }
    if error in _TEMPORARY:
        headers["Retry-After"] = _header("Seconds.", minimum=1)
    return {"description": description, "headers": headers, "content": _json(schema)}


def _header(description: str, minimum: int) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "integer", "minimum": minimum}}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": f"{_REF}{model.__name__}"}
