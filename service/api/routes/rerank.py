"""POST /v2/rerank as Cohere has it, and POST /v1/rerank as Jina has it: rewards for clients of rerankers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.auth import RoleRoute, caller_of, needs
from service.api.deps import limits_of, runtime_of
from service.api.errors import documented
from service.api.json_route import json_response
from service.api.messages import to_messages
from service.api.model_names import parse_model
from service.api.request_id import request_id_of
from service.api.rerank_schemas import (
    CohereRerankRequest,
    CohereRerankResponse,
    JinaRerankRequest,
    JinaRerankResponse,
)
from service.operations.rerank import RankedDocument, best_first
from service.operations.score import ScoreAnswer, ScoreItem
from service.operations.serving import ServedCheckpoint

router = APIRouter(tags=["rerank"], route_class=RoleRoute)


@router.post(
    "/v2/rerank",
    response_model=CohereRerankResponse,
    responses=documented(404, 413, 415, 421, 422, 500, 503),
    openapi_extra=needs("score"),
    summary="Completions in a user's order, as Cohere's v2 rerank",
)
async def rerank_v2(request: Request, body: CohereRerankRequest) -> Response:
    """Order candidate responses (`documents`) to a prompt (`query`) as one user would.

    Documents that are longer than the model reads are shortened, as clients of rerankers expect; `truncated` lists
    them. 404 where `model` names no loaded checkpoint.
    """
    _, answer = await _score(request, body)
    return json_response(
        {"results": [_result(each) for each in _ranked(answer, body)], **_common(request, body, answer, "2")}
    )


@router.post(
    "/v1/rerank",
    response_model=JinaRerankResponse,
    responses=documented(404, 413, 415, 421, 422, 500, 503),
    openapi_extra=needs("score"),
    summary="Completions in a user's order, as Jina's rerank and Cohere's v1",
)
async def rerank_v1(request: Request, body: JinaRerankRequest) -> Response:
    """Order candidate responses (`documents`) to a prompt (`query`) as one user would.

    As /v2/rerank; results bring their texts unless `return_documents` is false.
    """
    served, answer = await _score(request, body)
    texts = None if body.return_documents is False else body.texts
    return json_response(
        {
            "model": served.checkpoint.name,
            "object": "list",
            "usage": {"total_tokens": answer.computed_tokens},
            "results": [
                _result(each) if texts is None else {**_result(each), "document": {"text": texts[each.index]}}
                for each in _ranked(answer, body)
            ],
            **_common(request, body, answer, "1"),
        }
    )


async def _score(
    request: Request, body: CohereRerankRequest | JinaRerankRequest
) -> tuple[ServedCheckpoint, ScoreAnswer]:
    texts = body.texts
    limits_of(request).check_rerank(body.query, texts, body.model_extra or {})
    runtime = runtime_of(request)
    served, user_id = parse_model(body.model, body.user, runtime.serving)
    item = ScoreItem(user_id, to_messages(body.query), texts, list_name="documents")
    answer = await runtime.score(
        caller_of(request).tenant_id, [item], truncate=True, return_base_rewards=False, served=served
    )
    return served, answer


def _ranked(answer: ScoreAnswer, body: CohereRerankRequest | JinaRerankRequest) -> list[RankedDocument]:
    return best_first(answer.results[0], body.top_n)


def _common(
    request: Request, body: CohereRerankRequest | JinaRerankRequest, answer: ScoreAnswer, api_version: str
) -> dict[str, Any]:
    scored = answer.results[0]
    return {
        "id": request_id_of(request.scope),
        "meta": {
            "api_version": {"version": api_version},
            "billed_units": {"search_units": 1},
            "warnings": body.warnings,
        },
        "user_id": scored.user_id,
        "user_state": scored.standing,
        "version": scored.version,
        "checkpoint_id": answer.checkpoint_id,
        "truncated": scored.truncated,
    }


def _result(document: RankedDocument) -> dict[str, Any]:
    return {
        "index": document.index,
        "relevance_score": document.relevance_score,
        "reward": document.reward,
        "reward_std": document.reward_std,
    }
