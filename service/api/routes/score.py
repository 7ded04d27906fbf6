"""POST /score."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.auth import RoleRoute, caller_of, needs
from service.api.deps import limits_of, runtime_of
from service.api.errors import documented
from service.api.json_route import json_response
from service.api.messages import to_messages
from service.api.schemas import ScoreItemIn, ScoreManyRequest, ScoreManyResponse, ScoreOneResponse, ScoreRequest
from service.operations.score import Scored, ScoreItem

router = APIRouter(tags=["score"], route_class=RoleRoute)


@router.post(
    "/score",
    response_model=ScoreOneResponse | ScoreManyResponse,
    responses=documented(409, 413, 415, 421, 422, 500, 503),
    openapi_extra=needs("score"),
    summary="Personalised rewards of completions",
)
async def score(request: Request, body: ScoreRequest) -> Response:
    """Reward the completions of a prompt as one user would; or many users and prompts with `items`.

    The user's weights are those of their last adaptation; an unknown user gets the meta-learned start and the answer
    says `cold_start`. Without a user the population is asked, and the answer says `population`: the start again, and
    no user is looked up.
    """
    runtime = runtime_of(request)
    items: list[tuple[str, ScoreItemIn]]
    if isinstance(body, ScoreManyRequest):
        items = [(f"items[{i}].", item) for i, item in enumerate(body.items)]
    else:
        items = [("", body)]
    limits_of(request).check_score(items, pairwise=body.return_pairwise)
    answer = await runtime.score(
        caller_of(request).tenant_id,
        [
            ScoreItem(item.user_id, to_messages(item.prompt), item.completions, item.min_version, field)
            for field, item in items
        ],
        truncate=body.truncate,
        return_base_rewards=body.return_base_rewards,
        return_pairwise=body.return_pairwise,
    )
    common = {"checkpoint_id": answer.checkpoint_id, "timings_ms": answer.timings_ms}
    if isinstance(body, ScoreManyRequest):
        return json_response({"results": [_result(scored) for scored in answer.results], **common})
    return json_response({**_result(answer.results[0]), **common})


def _result(scored: Scored) -> dict[str, Any]:
    result: dict[str, Any] = {
        "user_id": scored.user_id,
        "user_state": scored.standing,
        "version": scored.version,
        "rewards": scored.rewards,
        "reward_std": scored.reward_std,
        "order": scored.order,
        "best_probability": scored.best_probability,
        "best_std": scored.best_std,
        "truncated": scored.truncated,
        "carried": scored.carried,
    }
    if scored.base_rewards is not None:
        result["base_rewards"] = scored.base_rewards
    if scored.preference_probability is not None:
        result["preference_probability"] = scored.preference_probability
        result["difference_std"] = scored.difference_std
    return result
